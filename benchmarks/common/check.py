"""Checks results: no cell is timed before its peers agree with a float64 LSTM as well as the
baseline does.

The budget is derived, not chosen: for every output and gradient, with e(p) = max |p - reference| of
peer p,

    e(peer) <= 2 * e(baseline) + u * max |reference|

where the reference is the baseline run in float64 on the same numbers, e(baseline) is the
baseline's own error in the dtype under test, and u is that dtype's unit roundoff
(``torch.finfo(dtype).eps / 2``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.common.peers import Problem, Runner
from benchmarks.common.timing import Task

STATE_NAMES = ("output", "h_n", "c_n")


class WrongResult(AssertionError):
    """A peer's result exceeds its error budget; the message has the tensor, the error and the
    budget.
    """


def make_task(runner: Runner, problem: Problem, mode: str) -> Task:
    """The call that is timed. ``infer``: forward under no_grad, in eval mode. ``train``: forward
    and the gradients of sum(y * w) for x and every weight; w is passed as the gradient of the
    output, so the sum itself is not computed.
    """
    runner.module.train(mode == "train")
    if mode == "infer":
        x = problem.x.detach()

        def infer() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return runner.forward(x)

        return Task(infer)

    x = problem.x.detach().clone().requires_grad_()
    leaves = {"input": x, **runner.parameters}

    def prepare() -> None:
        for leaf in leaves.values():
            leaf.grad = None

    def train() -> dict[str, Tensor]:
        outputs = runner.forward(x)
        outputs[0].backward(problem.output_weight)
        return {
            **dict(zip(STATE_NAMES, outputs, strict=True)),
            **{f"d_{k}": v.grad for k, v in leaves.items()},
        }

    return Task(train, prepare)


def results(runner: Runner, problem: Problem, mode: str) -> dict[str, Tensor]:
    """One call's tensors by name: output, h_n, c_n and, in training, d_input and d_<parameter>;
    detached.
    """
    task = make_task(runner, problem, mode)
    task.prepare()
    got = task.call()
    task.prepare()
    if not isinstance(got, dict):
        got = dict(zip(STATE_NAMES, got, strict=True))
    return {name: value.detach() for name, value in got.items()}


def errors(got: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """max |got - reference| by tensor; ``reference`` is float64 and may hold more tensors than
    ``got``.
    """
    worst = {}
    for name, value in got.items():
        if value.shape != reference[name].shape:
            raise WrongResult(f"{name}: shape {tuple(value.shape)}, expected {tuple(reference[name].shape)}")
        worst[name] = float((value.double() - reference[name]).abs().max()) if value.numel() else 0.0
    return worst


def judge(
    peer: str,
    got: Mapping[str, Tensor],
    base_errors: Mapping[str, float],
    reference: Mapping[str, Tensor],
    dtype: torch.dtype,
    roundoff: float | None = None,
) -> float:
    """The largest share of its budget that any tensor of ``got`` used; raises `WrongResult` where
    that is over 1. ``roundoff``: u of the budget, by default that of ``dtype``.
    """
    if roundoff is None:
        roundoff = torch.finfo(dtype).eps / 2
    used = 0.0
    missing = base_errors.keys() - got.keys()
    if missing:
        raise WrongResult(f"{peer}: gives no {', '.join(sorted(missing))}")
    for name, error in errors(got, reference).items():
        scale = float(reference[name].abs().max()) if reference[name].numel() else 0.0
        budget = 2 * base_errors[name] + roundoff * scale
        # `not <=`, so that a NaN fails.
        if not error <= budget:
            raise WrongResult(
                f"{peer}: {name} is off by {error:.2e}, and its budget is {budget:.2e} "
                f"(baseline's own error {base_errors[name]:.2e}, largest magnitude {scale:.2e})"
            )
        used = max(used, error / budget if budget else 0.0)
    return used
