"""Measures every cell: builds the peers, checks them, times them in turns; computes the floor."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby

import torch

from benchmarks.common import check
from benchmarks.common.machine import available_memory
from benchmarks.common.peers import INT8_PEERS, PEERS, Peer, Problem, Runner
from benchmarks.common.shapes import DTYPES, Case, Cell, expected_cell_seconds, expected_seconds
from benchmarks.common.tables import threads_text
from benchmarks.common.timing import interleave, paired_ratio, spread, torch_threads
from benchmarks.cpu import floor

CANDIDATE = "FastLSTM"
CONTROL = "nn.LSTM again"
REFERENCE_SECONDS = 8.0


class NoPeer(RuntimeError):
    """A cell cannot run because a peer is not available; the message is the peer's reason."""


class Pace:
    """The time in seconds for which each cell may measure.

    Without ``total`` every cell gets ``per_cell``. With it, the time that remains after the fewest
    repetitions of all remaining cells is divided among them; a late run has none, and makes the
    fewest repetitions nevertheless.
    """

    def __init__(self, cells: Sequence[Cell], total: float | None, per_cell: float) -> None:
        self.total, self.per_cell = total, per_cell
        self.start = time.perf_counter()
        self.cells_left = len(cells)
        self.expected_left = sum(map(expected_cell_seconds, cells))

    def next(self, cell: Cell) -> float:
        if self.total is None:
            return self.per_cell
        spare = self.total - (time.perf_counter() - self.start) - self.expected_left
        own = expected_cell_seconds(cell)
        allowed = min(max(spare / self.cells_left, 0.0), self.per_cell) + own / 2
        self.cells_left -= 1
        self.expected_left -= own
        return allowed


def chosen_peers(case: Case, dtype: torch.dtype, device: str, candidate: str) -> tuple[Peer, Peer, list[Peer]]:
    """(baseline, candidate, all that run). The baseline is the first row of `PEERS` that takes the
    case.

    Raises `NoPeer` with the candidate's reason, or with every reason if no baseline takes it.
    """
    peers = INT8_PEERS if dtype == torch.int8 else PEERS
    reason = peers[candidate].reject(case, dtype, device)
    if reason:
        raise NoPeer(reason)
    reasons = {name: peer.reject(case, dtype, device) for name, peer in peers.items()}
    others = [peers[name] for name in peers if reasons[name] is None and name not in (CANDIDATE, CONTROL)]
    if not others:
        raise NoPeer("no baseline: " + "; ".join(filter(None, reasons.values())))
    return others[0], peers[candidate], [*others, peers[candidate]]


def checkable(case: Case, mode: str) -> Case:
    """The case, cut to its first steps if the float64 reference of all steps would take too much
    time or memory.
    """
    room = 0.4 * available_memory()
    while case.T > 8:
        # About 16 rows of H float64 a step, direction and layer: gates, cell, output, gradients.
        size = case.rows() * 16 * 8 * case.H * case.D * case.L * (2 if mode == "train" else 1)
        if size <= room and expected_seconds(case, "float64", mode, 2) <= REFERENCE_SECONDS:
            break
        case = replace(case, T=case.T // 2)
    return case


class Bench:
    """The cells of one (case, dtype, device), which share the numbers, the built peers and the
    float64 reference.
    """

    def __init__(
        self,
        case: Case,
        dtype: str,
        device: str,
        modes: set[str],
        candidate: str,
        most_threads: int,
    ) -> None:
        torch_dtype = getattr(torch, dtype)
        self.base, self.candidate, self.peers = chosen_peers(case, torch_dtype, device, candidate)
        if torch_dtype == torch.int8:  # that of the weights; the tensors are float32
            torch_dtype = torch.float32
        self.problem = Problem.make(case, torch_dtype, device)
        self.runners = self.build(self.problem)
        mode = "train" if "train" in modes else "infer"
        checked = checkable(case, mode)
        self.checked_T = checked.T
        self.check_problem = self.problem if checked == case else Problem.make(checked, torch_dtype, device)
        self.check_runners = self.runners if checked == case else self.build(self.check_problem)
        exact = self.check_problem.as_float64()
        base = PEERS["nn.LSTM"] if dtype == "int8" else self.base
        with torch_threads(most_threads):
            self.reference = check.results(base.build(exact), exact, mode)

    def build(self, problem: Problem) -> dict[str, Runner]:
        return {peer.name: peer.build(problem) for peer in self.peers}

    def check(self, mode: str) -> float:
        """Raises `check.WrongResult`, or gives the largest share of its error budget that the
        candidate used.
        """
        base = self.base.name
        base_errors = check.errors(check.results(self.check_runners[base], self.check_problem, mode), self.reference)
        used = {}
        for name, runner in self.check_runners.items():
            if name != base:
                got = check.results(runner, self.check_problem, mode)
                used[name] = check.judge(name, got, base_errors, self.reference, self.problem.dtype)
        return used[self.candidate.name]

    def measure(self, cell: Cell, seconds: float) -> dict[str, object]:
        """The measured part of a row (see `run`)."""
        with torch_threads(cell.threads):
            used = self.check(cell.mode)
            tasks = {name: check.make_task(runner, self.problem, cell.mode) for name, runner in self.runners.items()}
            times = interleave(tasks, seconds, device=cell.device)
        base, candidate = self.base.name, self.candidate.name
        return {
            "baseline": base,
            "candidate": candidate,
            "checked_T": self.checked_T,
            "budget_used": used,
            "times": {name: spread(each) for name, each in times.items()},
            **paired_ratio(times[base], times[candidate]),
        }


def run(
    cells: Sequence[Cell],
    *,
    candidate: str = CANDIDATE,
    total: float | None = None,
    per_cell: float = 0.5,
) -> Iterator[dict[str, object]]:
    """One row (a dict for the results file) per cell, dear cells last. A cell that fails gives a
    row with the error.

    Every row has the case's fields, dtype, mode, threads, device, ``status`` (``ok`` or
    ``failed``), ``error`` and ``warnings``; an ``ok`` row has what `Bench.measure` gives.
    """
    groups: dict[tuple[Case, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.case, cell.dtype, cell.device), []).append(cell)
    pace = Pace(cells, total, per_cell)
    most_threads = max((cell.threads for cell in cells), default=1)
    for key, group in sorted(groups.items(), key=lambda item: sum(map(expected_cell_seconds, item[1]))):
        bench: Bench | Exception
        with warnings.catch_warnings(record=True) as built:
            warnings.simplefilter("default")
            try:
                bench = Bench(*key, {cell.mode for cell in group}, candidate, most_threads)
            except Exception as error:
                bench = error
        for cell in sorted(group):
            seconds = pace.next(cell)
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("default")
                row = measured_row(cell, bench, seconds)
            row["warnings"] = sorted({str(each.message) for each in (*built, *seen)})
            yield row


def measured_row(cell: Cell, bench: Bench | Exception, seconds: float) -> dict[str, object]:
    """A row of `run`, without its warnings; ``bench`` is the exception if building failed."""
    row = {
        **asdict(cell.case),
        "dtype": cell.dtype,
        "mode": cell.mode,
        "threads": cell.threads,
        "device": cell.device,
    }
    try:
        if isinstance(bench, Exception):
            raise bench
        row |= {**bench.measure(cell, seconds), "status": "ok", "error": None}
    except Exception as error:
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return row


def add_floors(rows: Sequence[dict[str, object]], machine: floor.Machine) -> None:
    """Put ``floor_s``, ``floor_kind`` and ``floor_share`` (floor / candidate's median) into every
    ``ok`` row.
    """
    for row in rows:
        if row["status"] == "ok":
            limit, kind = machine.floor(
                Cell(case_of(row), *(row[key] for key in ("dtype", "mode", "threads", "device")))
            )
            share = limit / row["times"][row["candidate"]]["median_s"]
            row |= {"floor_s": limit, "floor_kind": kind, "floor_share": share}


def case_of(row: dict[str, object]) -> Case:
    return Case(**{name: row[name] for name in Case.__dataclass_fields__})


def label(row: dict[str, object]) -> str:
    """``T64-N16-H128 float32 train 2 threads`` for a progress line."""
    return f"{case_of(row).label} {row['dtype']} {row['mode']} {threads_text(row['threads'])}"


def by_config(
    rows: Sequence[dict[str, object]],
) -> Iterator[tuple[tuple[str, str, int], list[dict[str, object]]]]:
    """Rows grouped by (dtype, mode, threads), in the order float32, bfloat16, float16; infer,
    train; threads.
    """

    def config(row: dict[str, object]) -> tuple[int, str, int]:
        return DTYPES.index(row["dtype"]), row["mode"], row["threads"]

    for (dtype, mode, threads), group in groupby(sorted(rows, key=config), config):
        yield (
            (DTYPES[dtype], mode, threads),
            sorted(group, key=lambda row: [row[k] for k in ("T", "N", "I", "H")]),
        )
