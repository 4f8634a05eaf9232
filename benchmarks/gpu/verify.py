"""Is the answer right? Every contender is held to a float64 LSTM before it is timed.

For each result and gradient, with e(p) = max |p - oracle| of contender p,

    e(p) <= 2 * e(base) + (u + sqrt(K) * u_acc) * max |oracle|

where the oracle is nn.LSTM in float64 on the same numbers (for what nn.LSTM has not, fastlstm's
reference), e(base) the baseline's own error in the precision under test, u the unit roundoff of
that precision, u_acc that of the sums and K the longest sum: K roundings, added one after the
other, are a random walk (Higham & Mary 2019). Where a contender is over that, the error of
fastlstm's reference in the same precision counts as e(base) too: the baseline may round less than
it must.

A case that is too long for float64 is checked on its first steps, with gradients; of the whole
length, the results of these first steps must be the same as well, and every number finite.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import check
from benchmarks.gpu.cells import GpuCell
from benchmarks.gpu.contenders import Autocast, Contender
from benchmarks.gpu.device import Device
from benchmarks.gpu.precision import PRECISIONS
from benchmarks.peers import FastLSTM, Peer, Problem, TorchLSTM
from benchmarks.shapes import Case

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
        self.errors: dict[str, float] | None = None
        self.with_reference = False
        longest = max(case.T * case.N, 4 * case.H)
        self.roundoff = PRECISIONS[cell.precision][2]
        self.roundoff += longest**0.5 * torch.finfo(torch.float32).eps / 2

    def _errors_of(self, peer: Peer) -> dict[str, float]:
        got = check.results(peer.build(self.problem), self.problem, "train")
        return check.errors(got, self.oracle)

    def verify(self, contender: Contender, mode: str) -> float:
        """The largest share of its budget that the contender used; raises `check.WrongResult`."""
        got = check.results(contender.peer.build(self.problem), self.problem, mode)
        wanted = set(self.oracle) if mode == "train" else set(check.STATE_NAMES)
        return self._judge(contender.name, got, wanted)

    def _judge(self, name: str, got: dict[str, Tensor], wanted: set[str]) -> float:
        if self.errors is None:
            self.errors = self._errors_of(self.first.peer)
        base = {key: self.errors[key] for key in wanted}
        try:
            return check.judge(name, got, base, self.oracle, self.problem.dtype, self.roundoff)
        except check.WrongResult:
            if self.with_reference:
                raise
            self.with_reference = True
            reference = self._errors_of(self.reference)
            self.errors = {key: max(value, reference[key]) for key, value in self.errors.items()}
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

    def verify_replay(
        self, name: str, once: tuple[Tensor, ...], again: tuple[Tensor, ...]
    ) -> str | None:
        """None where a graph's replay gives the bits of the plain call, else how far it is off; two
        results within the budget may be two budgets apart, and what is further raises
        `check.WrongResult`.
        """
        shares = [0.0]
        for key, value in (self.errors or {}).items():
            shares.append(value / (float(self.oracle[key].abs().max()) or 1.0))
        allowed, worst = 2 * (2 * max(shares) + self.roundoff), 0.0
        for a, b in zip(once, again, strict=True):
            if not torch.equal(a, b):
                off = float((a.double() - b.double()).abs().max() / a.double().abs().max())
                worst = off if not off <= worst else worst  # so that a NaN stays
        if not worst <= allowed:
            raise check.WrongResult(
                f"{name}: the replay is off by {worst:.2e} of the call's, allowed {allowed:.2e}"
            )
        return f"the replay is not the call bit for bit: off by {worst:.2e}" if worst else None


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
