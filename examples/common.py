"""Shared by the programs: settings, the training of two models side by side, and their agreement.

Both models start from the same weights and get the same batches in the same order. They are trained
in one process, a step of one and then a step of the other, so that other load on the machine
affects both; the order is swapped at every second step.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import fastlstm
from examples.console import progress

PLAIN, FAST = "nn.LSTM", "FastLSTM"
BOTH = (PLAIN, FAST)


class MissingPackage(RuntimeError):
    """A program cannot run because an optional package is not installed."""

    def __init__(self, demo: str, package: str) -> None:
        super().__init__(f"{demo} needs {package}, which is not installed: pip install {package}")


@dataclass(frozen=True)
class Settings:
    """Settings from the command line for every program.

    epochs: a factor for each program's number of epochs. smoke: reduces data and epochs to a few
    steps, to test that everything runs. int8: whether to measure the trained models with int8
    weights too.
    """

    seed: int = 0
    epochs: float = 1.0
    backend: str = "auto"
    smoke: bool = False
    int8: bool = False

    def scaled(self, epochs: int) -> int:
        return 1 if self.smoke else max(1, round(epochs * self.epochs))


@dataclass
class Comparison:
    """Two trainings, step by step: losses and seconds, each under "nn.LSTM" and "FastLSTM"."""

    losses: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in BOTH})
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(BOTH, 0.0))

    @property
    def steps(self) -> int:
        return len(self.losses[PLAIN])

    @property
    def differences(self) -> list[float]:
        """|loss of nn.LSTM - loss of FastLSTM| at every step."""
        return [abs(a - b) for a, b in zip(self.losses[PLAIN], self.losses[FAST], strict=True)]

    @property
    def max_difference(self) -> float:
        # max() ignores a NaN unless it comes first; a curve with NaN must not look fine.
        return float(torch.tensor(self.differences, dtype=torch.float64).max())

    @property
    def ratio(self) -> float:
        """Seconds of nn.LSTM over seconds of FastLSTM: above 1, FastLSTM was faster."""
        return self.seconds[PLAIN] / self.seconds[FAST]


@dataclass(frozen=True)
class Int8Loss:
    """The loss of quality of a trained model by int8 weights: `lost` of its measure, where at most
    `most` is accepted. how: the arithmetic. text: both measures."""

    how: str
    text: str
    lost: float
    most: float
    unit: str

    @property
    def small(self) -> bool:
        return self.lost <= self.most

    def __str__(self) -> str:
        return f"{self.how}: {self.text}, {self.lost:+.4f} {self.unit} lost (at most {self.most:g})"


def with_int8(
    model: nn.Module, measure: Callable[[nn.Module], float], show: str, most: float, unit: str
) -> list[Int8Loss]:
    """Compares `measure`, lower is better, of the model and of its copies with int8 weights."""
    before, found = measure(model), []
    for how, options in (("int8 weights", {}), ("int8, weight_only", {"weight_only": True})):
        twin = fastlstm.convert(copy.deepcopy(model), weight_dtype=torch.int8, **options)
        after = measure(twin)
        text = f"{show} {abs(after):.4f}, float32 {abs(before):.4f}"
        found.append(Int8Loss(how, text, after - before, most, unit))
    return found


@dataclass
class Result:
    """The result of a program.

    scores: the measure on held-out data of both models; score_format: prints one of them. baseline:
    an optional (label, value) to compare with. draw(ax): draws the program's panel of the picture
    on a matplotlib Axes. losses_of_int8: with --int8.
    """

    name: str
    title: str
    comparison: Comparison
    score_name: str
    score_format: Callable[[float], str]
    scores: dict[str, float]
    draw: Callable[[Any], None]
    baseline: tuple[str, float] | None = None
    notes: list[str] = field(default_factory=list)
    losses_of_int8: list[Int8Loss] = field(default_factory=list)


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """build() under a seed: FastLSTM draws its weights as nn.LSTM does, so the same seed gives both
    the same initial weights."""
    torch.manual_seed(seed)
    return build()


def shuffled_batches(
    tensors: Sequence[torch.Tensor], size: int, epochs: int, seed: int, limit: int | None = None
) -> list[tuple[torch.Tensor, ...]]:
    """Every batch of every epoch, in one list, so that both trainings can walk through it.

    Args:
        tensors: examples and targets, all with the same first dimension.
        size: examples per batch; a smaller rest is dropped.
        epochs: passes over the data, each in a new order drawn from seed.
        limit: at most so many batches per epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(tensors[0])
    batches = []
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        chunks = [rows for rows in order.split(size) if len(rows) == size][:limit]
        batches += [tuple(t[rows] for t in tensors) for rows in chunks]
    return batches


def side_by_side(
    label: str,
    models: dict[str, nn.Module],
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], torch.Tensor],
    *,
    learning_rate: float,
    seed: int,
) -> Comparison:
    """Trains both models over the same batches and times every step of each.

    The optimizer is SGD with momentum, its learning rate rising to learning_rate and falling
    again. Adam would do too, but it divides by the size of the gradient, which magnifies the
    rounding of the smallest ones: two exact trainings then drift apart much sooner.
    A step's time covers forward, backward, gradient clipping and the optimizer.

    Args:
        label: what the progress bar says.
        models: the two models, under "nn.LSTM" and "FastLSTM"; left trained, in eval mode.
        loss: loss(model, batch) -> scalar tensor.
        seed: of the dropout masks.

    Raises:
        ValueError: the models do not start from equal weights.
    """
    _check_equal_start(models[PLAIN], models[FAST])
    optimizers, schedules = {}, {}
    for name, model in models.items():
        model.train()
        optimizers[name] = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True)
        schedules[name] = torch.optim.lr_scheduler.OneCycleLR(optimizers[name], learning_rate, total_steps=len(batches))
        # One untimed pass on a copy, since libraries initialise at the first call.
        loss(copy.deepcopy(model), batches[0]).backward()

    result = Comparison()
    with progress(label, len(batches)) as advance:
        for index, batch in enumerate(batches):
            for name in BOTH if index % 2 == 0 else reversed(BOTH):
                # Dropout draws from the global generator, which must be in the same state for both.
                torch.manual_seed(seed + index)
                start = time.perf_counter()
                optimizers[name].zero_grad()
                value = loss(models[name], batch)
                value.backward()
                nn.utils.clip_grad_norm_(models[name].parameters(), max_norm=1.0)
                optimizers[name].step()
                schedules[name].step()
                result.seconds[name] += time.perf_counter() - start
                result.losses[name].append(value.item())
            advance()
    for model in models.values():
        model.eval()
    return result


def _check_equal_start(plain: nn.Module, fast: nn.Module) -> None:
    ours = fast.state_dict()
    for key, value in plain.state_dict().items():
        if key not in ours or not torch.equal(value, ours[key]):
            raise ValueError(
                f"the two models must start from equal weights, but {key} differs; build both under the same seed"
            )
