"""The benchmarked implementations ("peers"), an adapter for each.

A new peer is a subclass of `Peer` and a row in `PEERS`; a new device is an entry in its
``devices``. A peer that lacks a package or a device returns the reason in ``reject``, which the
report shows instead of a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks.common.shapes import RESET_PROBABILITY, Case


@dataclass
class Problem:
    """The tensors of one case in one dtype, the same for every peer.

    ``x`` (T, N, I), or the packed rows (rows, I); ``output_weight``: the fixed w in the training
    loss sum(y * w), shaped as y; ``state_dict`` as nn.LSTM names it; ``lengths`` (N,) int64,
    unsorted; ``packing``: the PackedSequence whose data is x; ``reset_mask`` (T, N) bool.
    """

    case: Case
    dtype: torch.dtype
    device: str
    x: Tensor
    output_weight: Tensor
    state_dict: dict[str, Tensor]
    lengths: Tensor | None = None
    packing: PackedSequence | None = None
    reset_mask: Tensor | None = None

    @classmethod
    def make(cls, case: Case, dtype: torch.dtype, device: str = "cpu") -> Problem:
        """Drawn from a fixed seed on the device: x and w from N(0, 1), weights as nn.LSTM
        initialises them, then rounded.
        """
        where = torch.device(device)
        generator = torch.Generator().manual_seed(0)
        drawn = {"generator": torch.Generator(device).manual_seed(0), "device": device}
        with torch.random.fork_rng(devices=[] if where.type == "cpu" else [where.index or 0]):
            torch.manual_seed(0)
            state_dict = lstm_like(nn.LSTM, case, device=device).state_dict()
        x = torch.randn(case.T, case.N, case.I, **drawn)
        lengths = packing = reset_mask = None
        if case.variant in ("packed", "lengths"):
            lengths = torch.linspace(case.T / 4, case.T, case.N).round().long()
            lengths = lengths[torch.randperm(case.N, generator=generator)]
        if case.variant == "packed":
            packing = pack_padded_sequence(x, lengths, enforce_sorted=False)
            x = packing.data
        w = torch.randn(*x.shape[:-1], case.D * case.output_size, **drawn)
        if case.variant == "resets":
            reset_mask = torch.rand(case.T, case.N, **drawn) < RESET_PROBABILITY
        weights = {name: value.to(device, dtype) for name, value in state_dict.items()}
        return cls(
            case,
            dtype,
            device,
            x.to(device, dtype),
            w.to(device, dtype),
            weights,
            lengths,
            packing,
            reset_mask,
        )

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in ``dtype``."""
        return replace(
            self,
            dtype=dtype,
            x=self.x.to(dtype),
            output_weight=self.output_weight.to(dtype),
            state_dict={name: value.to(dtype) for name, value in self.state_dict.items()},
        )

    def as_float64(self) -> Problem:
        """The same numbers, exactly, in float64."""
        return self.to(torch.float64)


def lstm_like(cls: type[nn.LSTM], case: Case, **options) -> nn.LSTM:
    """A ``cls`` (nn.LSTM or a subclass) of the case's sizes."""
    return cls(case.I, case.H, case.L, bidirectional=case.D == 2, proj_size=case.P, **options)


@dataclass
class Runner:
    """A built peer. ``forward(x)`` gives the output tensor, then the state tensors (h_n, c_n)."""

    module: nn.Module
    forward: Callable[[Tensor], tuple[Tensor, ...]]
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)  # by nn.LSTM's names


class Peer:
    """One implementation. ``reject`` says why it cannot run a case, or None; ``build`` loads the
    problem's weights.
    """

    name = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    variants: tuple[str, ...] = ()

    def reject(self, case: Case, dtype: torch.dtype, device: str) -> str | None:
        if torch.device(device).type not in self.devices:
            return f"{self.name} runs on {', '.join(self.devices)}, not on {device}"
        if case.variant not in self.variants:
            return f"{self.name} has no {case.variant}"
        return None

    def build(self, problem: Problem) -> Runner:
        raise NotImplementedError


class TorchLSTM(Peer):
    """nn.LSTM: oneDNN inside for float32 and bfloat16 on the CPU."""

    name = "nn.LSTM"
    variants = ("plain", "bidirectional", "layers3", "layers4", "proj", "wide", "packed", "lengths")
    module_class: type[nn.LSTM] = nn.LSTM
    options: Mapping[str, object] = MappingProxyType({})

    def build(self, problem: Problem) -> Runner:
        options = {"device": problem.device, "dtype": problem.dtype, **self.options}
        module = lstm_like(self.module_class, problem.case, **options)
        module.load_state_dict(problem.state_dict)
        return Runner(module, self.forward_of(module, problem), dict(module.named_parameters()))

    def forward_of(self, module: nn.LSTM, problem: Problem) -> Callable[[Tensor], tuple[Tensor, ...]]:
        variant, lengths, packing = problem.case.variant, problem.lengths, problem.packing
        if variant == "packed":

            def packed(x: Tensor) -> tuple[Tensor, ...]:
                y, state = module(PackedSequence(x, *packing[1:]))
                return y.data, *state

            return packed
        if variant == "lengths":

            def padded(x: Tensor) -> tuple[Tensor, ...]:
                # A caller with a padded batch packs and unpacks at every call, so both are timed.
                packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
                y, state = module(packed)
                return pad_packed_sequence(y, total_length=x.shape[0])[0], *state

            return padded
        return lambda x: flat(module(x))


class ControlLSTM(nn.LSTM):
    """nn.LSTM under another name, to time the benchmark against itself."""


class Control(TorchLSTM):
    """nn.LSTM instead of fastlstm: its ratio should be 1; the deviation is the machine's noise."""

    name = "nn.LSTM again"
    module_class = ControlLSTM


class CellLoop(Peer):
    """What users write today for resets within a sequence: a Python loop over nn.LSTMCell."""

    name = "nn.LSTMCell loop"
    variants = ("resets",)

    def build(self, problem: Problem) -> Runner:
        case = problem.case
        cell = nn.LSTMCell(case.I, case.H).to(problem.dtype).to(problem.device)
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in problem.state_dict.items()})
        keep = (~problem.reset_mask).to(problem.dtype).unsqueeze(-1)  # [T, N, 1]

        def forward(x: Tensor) -> tuple[Tensor, ...]:
            h = c = x.new_zeros(case.N, case.H)
            outputs = []
            for x_t, keep_t in zip(x.unbind(0), keep.unbind(0), strict=True):
                h, c = cell(x_t, (h * keep_t, c * keep_t))
                outputs.append(h)
            return torch.stack(outputs), h.unsqueeze(0), c.unsqueeze(0)

        return Runner(cell, forward, {f"{name}_l0": value for name, value in cell.named_parameters()})


class FastLSTM(TorchLSTM):
    """fastlstm.FastLSTM with the backend that "auto" chooses, or a given one."""

    name = "FastLSTM"
    variants = (*TorchLSTM.variants, "resets")

    def __init__(self, backend: str = "auto") -> None:
        self.options = {"backend": backend}

    def build(self, problem: Problem) -> Runner:
        import fastlstm

        self.module_class = fastlstm.FastLSTM
        return super().build(problem)

    def reject(self, case: Case, dtype: torch.dtype, device: str) -> str | None:
        try:
            import fastlstm  # noqa: F401
        except Exception as error:
            # A broken build must fail a row, not the run.
            return f"fastlstm cannot be imported: {type(error).__name__}: {error}"
        backend = self.options.get("backend", "auto")
        if backend != "auto":
            from fastlstm import backends

            try:
                backends.select(backend, backends.Call.of(device, dtype))
            except (RuntimeError, ValueError) as error:
                return str(error)
        return super().reject(case, dtype, device)

    def forward_of(self, module: nn.LSTM, problem: Problem) -> Callable[[Tensor], tuple[Tensor, ...]]:
        if problem.case.variant == "lengths":
            lengths = problem.lengths.to(problem.device)
            return lambda x: flat(module(x, lengths=lengths))
        if problem.case.variant == "resets":
            return lambda x: flat(module(x, reset_mask=problem.reset_mask))
        return super().forward_of(module, problem)


def flat(result: tuple[Tensor, tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """(y, (h_n, c_n)) as (y, h_n, c_n)."""
    y, state = result
    return y, *state


class TorchInt8(TorchLSTM):
    """nn.LSTM quantised by torch.ao.quantization.quantize_dynamic."""

    name = "quantize_dynamic"
    devices = ("cpu",)
    variants = ("plain", "bidirectional", "layers3", "wide", "packed", "lengths")

    def build(self, problem: Problem) -> Runner:
        from torch.ao.quantization import quantize_dynamic

        runner = super().build(problem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated
            module = quantize_dynamic(nn.Sequential(runner.module.eval()), {nn.LSTM})[0]
        return Runner(module, self.forward_of(module, problem))


class FastInt8(FastLSTM):
    """FastLSTM with weight_dtype=torch.int8."""

    devices = ("cpu",)

    def __init__(self) -> None:
        self.options = {"weight_dtype": torch.int8}


class ControlInt8(TorchInt8):
    name = Control.name


# The peers of a problem in float32 with int8 weights.
INT8_PEERS: dict[str, Peer] = {peer.name: peer for peer in (TorchInt8(), FastInt8(), ControlInt8())}

PEERS: dict[str, Peer] = {peer.name: peer for peer in (TorchLSTM(), CellLoop(), FastLSTM(), Control())}
