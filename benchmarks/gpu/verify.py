"""Is the answer right? Every contender is held to a float64 LSTM before it is timed.

For each result and gradient, with e(p) = max |p - oracle| of contender p,

    e(p) <= 2 * e(base) + (u + sqrt(K) * u_acc) * max |oracle|

where the oracle is nn.LSTM in float64 on the same numbers (for what nn.LSTM has not, fastlstm's
reference), e(base) the baseline's own error in the precision under test, u the unit roundoff of
that precision, u_acc that of the sums and K the longest sum: K roundings, added one after the
other, are a random walk (Higham & Mary 2019). Because the error of one small tensor is a matter of
luck, e(base) is the largest share of its magnitude in its group, the results or the gradients.
Where a contender is over that, the error of fastlstm's reference counts as e(base) too, with the
factors of its products rounded as tensor cores round them: the baseline may round less than it
must.

A case that is too long for float64 is checked on its first steps, with gradients; of the whole
length, the results of these first steps must be the same as well, and every number finite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.common import check
from benchmarks.common.peers import FastLSTM, Peer, Problem, TorchLSTM
from benchmarks.common.precision import PRECISIONS
from benchmarks.common.shapes import Case
from benchmarks.gpu.cells import GpuCell
from benchmarks.gpu.contenders import Autocast, Contender
from benchmarks.gpu.device import Device

ORACLE_FLOPS = 2e12
REFERENCE_T = 64


def checkable(case: Case, mode: str, device: Device) -> Case:
    """The case, or its first steps where the float64 LSTM of all of them takes too long or too much
    memory.
    """
    # A variant without nn.LSTM is checked by the reference, some hundred small kernels a step.
    T = min(case.T, REFERENCE_T if case.variant == "resets" else case.T)
    per_step = replace(case, T=1).flops(mode)
    # About 16 rows of H float64 a step, direction and layer: gates, cell, output, gradients.
    memory = case.N * 16 * 8 * max(case.H, case.I) * case.D * case.L * 2
    T = min(T, int(ORACLE_FLOPS / per_step), int(0.2 * device.free_bytes / memory))
    return replace(case, T=max(T, min(case.T, 4)))


class Verifier:
    """The oracle and the baseline's errors of one case and precision, for both modes."""

    def __init__(self, device: Device, cell: GpuCell, problem: Problem, first: Contender) -> None:
        self.first, case = first, problem.case
        self.case = checkable(case, "train", device)
        self.whole = self.case == case
        self.sliced = case.variant not in ("packed", "lengths")
        if self.whole:
            self.problem = problem
        elif self.sliced:
            self.problem = first_steps(problem, self.case)
        else:  # its lengths are spread over its own T
            self.problem = Problem.make(self.case, problem.dtype, problem.device)
        exact = self.problem.as_float64()
        self.reference: Peer = FastLSTM("reference")
        oracle = self.reference if case.variant == "resets" else TorchLSTM()
        if case.variant == "autocast":
            exact = replace(exact, case=replace(self.case, variant="plain"))
            self.reference = Autocast(self.reference)
        self.oracle = check.results(oracle.build(exact), exact, "train")
        self.shares: dict[str, float] | None = None
        self.with_reference = False
        self.precision = cell.precision
        longest = max(case.T * case.N, 4 * case.H)
        self.roundoff = PRECISIONS[cell.precision][2]
        self.roundoff += longest**0.5 * torch.finfo(torch.float32).eps / 2

    def shares_of(self, peer: Peer) -> dict[str, float]:
        """The largest relative errors of a peer's ``results`` and ``gradients``."""
        got = check.results(peer.build(self.problem), self.problem, "train")
        shares = {"results": 0.0, "gradients": 0.0}
        for name, error in check.errors(got, self.oracle).items():
            share = error / (self.magnitude(name) or 1.0)
            shares[group(name)] = max(shares[group(name)], share)
        return shares

    def magnitude(self, name: str) -> float:
        value = self.oracle[name]
        return float(value.abs().max()) if value.numel() else 0.0

    def verify(self, contender: Contender, mode: str) -> float:
        """The largest share of its budget that the contender used; raises `check.WrongResult`."""
        got = check.results(contender.peer.build(self.problem), self.problem, mode)
        wanted = set(self.oracle) if mode == "train" else set(check.STATE_NAMES)
        return self._judge(contender.name, got, wanted)

    def _judge(self, name: str, got: dict[str, Tensor], wanted: set[str]) -> float:
        if self.shares is None:
            self.shares = self.shares_of(self.first.peer)
        base = {key: self.shares[group(key)] * self.magnitude(key) for key in wanted}
        try:
            return check.judge(name, got, base, self.oracle, self.problem.dtype, self.roundoff)
        except check.WrongResult:
            if self.with_reference:
                raise
            self.with_reference = True
            with rounded_products(self.precision):
                reference = self.shares_of(self.reference)
            self.shares = {key: max(value, reference[key]) for key, value in self.shares.items()}
            return self._judge(name, got, wanted)

    def verify_whole(self, name: str, results: tuple[Tensor, ...]) -> None:
        """Hold a call of the whole length to what its first steps must be; raises
        `check.WrongResult`. ``results``: output, h_n, c_n, and the gradients if any.
        """
        for index, value in enumerate(results):
            if not bool(value.isfinite().all()):
                raise check.WrongResult(f"{name}: result {index} of the whole call is not finite")
        if not self.whole and self.sliced and self.case.D == 1:
            start = {"output": results[0][: self.case.T].detach()}
            self._judge(f"{name}, whole length", start, {"output"})

    def verify_replay(self, name: str, once: tuple[Tensor, ...], again: tuple[Tensor, ...]) -> str | None:
        """None where a graph's replay gives the bits of the plain call, else how far it is off; two
        results within the budget may be two budgets apart, and what is further raises
        `check.WrongResult`.
        """
        share = max((self.shares or {"": 0.0}).values())
        allowed, worst = 2 * (2 * share + self.roundoff), 0.0
        for a, b in zip(once, again, strict=True):
            if not torch.equal(a, b):
                off = float((a.double() - b.double()).abs().max() / a.double().abs().max())
                worst = off if not off <= worst else worst  # so that a NaN stays
        if not worst <= allowed:
            raise check.WrongResult(f"{name}: the replay is off by {worst:.2e} of the call's, allowed {allowed:.2e}")
        return f"the replay is not the call bit for bit: off by {worst:.2e}" if worst else None


def group(name: str) -> str:
    return "gradients" if name.startswith("d_") else "results"


@contextlib.contextmanager
def rounded_products(precision: str) -> Iterator[None]:
    """Have fastlstm's reference round the factors of the recurrence's products as tensor cores do
    in this precision.
    """
    from fastlstm.reference import lstm as reference

    exact = reference.product
    reference.product = lambda a, b: exact(rounded(a, precision), rounded(b, precision))
    try:
        yield
    finally:
        reference.product = exact


def rounded(x: Tensor, precision: str) -> Tensor:
    """x with its numbers rounded to the precision's factors."""
    if precision == "tf32":  # 10 bits of mantissa, ties away from zero
        bits = x.float().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)
    return x.to(PRECISIONS[precision][0]).to(x.dtype)


def first_steps(problem: Problem, case: Case) -> Problem:
    """The first ``case.T`` steps of a problem without lengths."""
    mask = problem.reset_mask
    return replace(
        problem,
        case=case,
        x=problem.x[: case.T].clone(),
        output_weight=problem.output_weight[: case.T].clone(),
        reset_mask=None if mask is None else mask[: case.T].clone(),
    )
