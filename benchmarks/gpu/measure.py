"""One cell: every contender is checked, then all take turns, plain and as CUDA graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.common import check
from benchmarks.common.peers import Problem
from benchmarks.common.precision import PRECISIONS, fp32_precision
from benchmarks.common.shapes import Case
from benchmarks.common.stand_ins import BACKENDS, is_dry
from benchmarks.common.timing import Task, interleave, paired_ratio, spread
from benchmarks.gpu import floor
from benchmarks.gpu.cells import LONG_CALL_SECONDS, GpuCell
from benchmarks.gpu.contenders import GRAPH, Contender, baseline_of, contenders_of, tensor_dtype
from benchmarks.gpu.device import Call, Device, first_line
from benchmarks.gpu.verify import Verifier

# A sample is as many calls back to back as take this long, so that an event's own cost and a gap
# between two launches do not count.
SAMPLE_SECONDS = 0.008
MOST_CALLS = 64
THEIRS = "nn.LSTM"  # how the names of its lanes begin
MOST_SETS = 4
# Nodes of a graph cost time to capture: it holds one call for each set of inputs up to this length.
MOST_GRAPHED_STEPS = 512


class ContextLost(RuntimeError):
    """The process can use the GPU no more, because of ``contender``; another one must go on."""

    def __init__(self, contender: str, reason: str) -> None:
        super().__init__(f"{contender}: {reason}")
        self.contender, self.reason = contender, reason


@dataclass
class Lane:
    """What is timed under one name: ``call`` makes ``sets`` calls of the contender."""

    call: Call
    sets: int
    calls: int  # of ``call`` in a sample


class Bench:
    """The cells of one case and precision: one problem, its input sets and, if ``checked``, its
    oracle.
    """

    def __init__(self, device: Device, cell: GpuCell, case: Case, checked: bool = True) -> None:
        self.device, self.case = device, case
        self.contenders = contenders_of(cell)
        self.problem = Problem.make(case, tensor_dtype(cell), device.name)
        if checked:
            self.verifier = Verifier(device, cell, self.problem, self.contenders[0])
        self.sets = self.input_sets()

    def input_sets(self) -> list[tuple[Tensor, Tensor]]:
        """(x, output_weight), several of them where one would still lie in L2 for the next call."""
        x, w = self.problem.x, self.problem.output_weight
        size = max(1, x.nbytes + w.nbytes)
        count = min(MOST_SETS, -(-2 * self.device.l2_bytes // size))
        return [(x, w), *((torch.randn_like(x), torch.randn_like(w)) for _ in range(1, count))]

    def call(self, contender: Contender, mode: str) -> Call:
        """The k-th call takes the k-th input set: forward under no_grad, or forward and the
        gradients of sum(y * w) for x and every weight.
        """
        runner = contender.peer.build(self.problem)
        runner.module.train(mode == "train")
        sets, leaves = self.sets, list(runner.parameters.values())
        dtype = getattr(contender.peer, "dtype", self.problem.dtype)
        if dtype != self.problem.dtype:
            sets = [(x.to(dtype), w.to(dtype)) for x, w in sets]
        if mode == "infer":

            def infer(k: int) -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return runner.forward(sets[k % len(sets)][0])

            return infer

        sets = [(x.detach().clone().requires_grad_(), w) for x, w in sets]

        def train(k: int) -> tuple[Tensor, ...]:
            x, w = sets[k % len(sets)]
            outputs = runner.forward(x)
            grads = torch.autograd.grad(outputs[0], [x, *leaves], w.to(outputs[0].dtype))
            return (*(y.detach() for y in outputs), *grads)

        return train


class CellRun:
    """Measures one cell of a `Bench`.

    Args:
        exclude: contenders that may not run, with the reasons.
        mark: called with a contender's name before it does something new.
        known: what an earlier run measured of nn.LSTM's lanes, as `of_torch` gives it, or None.
    """

    def __init__(
        self,
        bench: Bench,
        cell: GpuCell,
        exclude: dict[str, str],
        mark: Callable[[str], None],
        known: dict | None = None,
    ) -> None:
        self.known = known or {"times": {}, "memory": {}, "calls": {}}
        self.times: dict[str, list[float]] = {}
        self.bench, self.cell, self.device, self.mark = bench, cell, bench.device, mark
        self.notes = dict(exclude)
        self.failed = [name for name in exclude if is_ours(name)]
        self.used: dict[str, float] = {}
        self.remarks: dict[str, str] = {}
        self.memory: dict[str, int] = {}
        self.lanes: dict[str, Lane] = {}

    def run(self, seconds: float, product_rate: float) -> dict[str, object]:
        """The row. ``seconds``: for the measured calls, but each lane is measured at least three
        times.
        """
        for contender in self.bench.contenders:
            if contender.name in self.known["times"]:
                self.memory[contender.name] = self.known["memory"][contender.name]
                self.remarks[contender.name] = "measured in an earlier run"
            elif contender.name not in self.notes:
                with self.guarded(contender.name):
                    self.prepare(contender)
        times = {}
        if self.lanes and "timing" not in self.notes:
            self.mark("timing")
            with self.guarded("timing"):
                times = self.time(seconds)
        # The baseline first, as where it is measured here.
        self.times = self.known["times"] | times
        return self.row(self.times, product_rate)

    def of_torch(self) -> dict:
        """What of this run is nn.LSTM's alone, and holds while GPU and libraries are the same."""
        theirs = [name for name in self.times if name.startswith(THEIRS)]
        calls = {name: lane.calls * lane.sets for name, lane in self.lanes.items()}
        return {
            "times": {name: self.times[name] for name in theirs},
            "memory": {n: b for n, b in self.memory.items() if n.startswith(THEIRS)},
            "calls": {name: (calls | self.known["calls"])[name] for name in theirs},
        }

    @contextlib.contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Note what goes wrong inside, and go on. A wrong result is a failure of the cell, and so
        is whatever else stops a backend of fastlstm, but for a full memory.
        """
        try:
            yield
        except ContextLost:
            raise
        except Exception as error:
            full = isinstance(error, torch.cuda.OutOfMemoryError)
            if isinstance(error, check.WrongResult) or (is_ours(name) and not full):
                self.failed.append(name)
            self.notes[name] = f"{type(error).__name__}: {first_line(error)}"
        if name in self.notes:
            illness = self.device.illness()
            if illness:
                raise ContextLost(name, f"{self.notes[name]} ({illness})")
            self.device.release()

    def prepare(self, contender: Contender) -> None:
        """Check a contender and make its lanes."""
        bench, name, mode = self.bench, contender.name, self.cell.mode
        case = bench.case
        refused = contender.peer.reject(case, bench.problem.dtype, self.device.name)
        if refused:
            self.notes[name] = f"refused: {refused}"
            return
        self.mark(name)
        if contender.checked:
            self.used[name] = bench.verifier.verify(contender, mode)
        call = bench.call(contender, mode)
        results = call(0)
        bench.verifier.verify_whole(name, results)
        self.memory[name] = self.device.peak_bytes(call)
        seconds = self.device.sample(call, 1)
        self.lanes[name] = Lane(call, 1, calls_of(seconds, len(bench.sets)))
        graph = f"{name}{GRAPH}"
        if not contender.graphed or graph in self.notes:
            return
        large = self.memory[name] > 0.15 * self.device.free_bytes
        # A dry run's times say nothing, and must not decide what is tried.
        if not is_dry() and (seconds > LONG_CALL_SECONDS or large):
            self.notes[graph] = "left out: so long or large a call gains nothing by it"
            return
        with self.guarded(graph):
            self.prepare_graph(contender, call, results)

    def prepare_graph(self, contender: Contender, call: Call, results) -> None:
        name = f"{contender.name}{GRAPH}"
        self.mark(name)
        few = self.bench.case.T * self.bench.case.L * len(self.bench.sets) <= MOST_GRAPHED_STEPS
        sets = len(self.bench.sets) if few else 1
        replay, captured = self.device.capture(call, sets)
        replay(0)
        self.device.synchronize()
        if contender.checked:
            said = self.bench.verifier.verify_replay(name, results, captured[0])
            if said:
                self.remarks[name] = said
        self.lanes[name] = Lane(replay, sets, calls_of(self.device.sample(replay, 1), 1))

    def time(self, seconds: float) -> dict[str, list[float]]:
        lanes = self.lanes

        def measure(task: Task) -> float:
            lane = task.call()
            return self.device.sample(lane.call, lane.calls) / lane.sets

        tasks = {name: Task(lambda lane=lane: lane) for name, lane in lanes.items()}
        for task in tasks.values():  # each needs its memory back from the others
            measure(task)
        return interleave(tasks, seconds, min_reps=3, max_reps=60, measure=measure)

    def row(self, times: dict[str, list[float]], product_rate: float) -> dict[str, object]:
        bench, cell, names = self.bench, self.cell, list(times)
        ratios = {}
        for name in names:
            base = baseline_of(name, [c.name for c in bench.contenders] + names)
            if base in times and base != name:
                ratios[name] = {"of": base, **paired_ratio(times[base], times[name], 200)}
        limit = floor.floor_seconds(bench.case, cell.precision, cell.mode, product_rate)
        medians = {name: spread(each) for name, each in times.items()}
        row = {
            **asdict(bench.case),
            "dtype": cell.precision,
            "mode": cell.mode,
            "device": self.device.name,
            "status": "failed" if self.failed or not ratios else "ok",
            "error": self.error(ratios),
            "baseline": bench.contenders[0].name,
            "times": medians,
            "ratios": ratios,
            "notes": self.notes | self.remarks,
            "budget_used": self.used,
            "checked_T": bench.verifier.case.T,
            "peak_bytes": self.memory,
            "calls": self.known["calls"] | {name: lane.calls * lane.sets for name, lane in self.lanes.items()},
            "input_sets": len(bench.sets),
            **limit,
            "floor_share": {n: limit["floor_s"] / m["median_s"] for n, m in medians.items()},
        }
        return rounded(row)

    def error(self, ratios: dict) -> str | None:
        if self.failed:
            return "; ".join(f"{name}: {self.notes[name]}" for name in self.failed)
        if ratios:
            return None
        said = "; ".join(f"{name}: {note}" for name, note in self.notes.items())
        return f"nothing to compare ({said})"


def rounded(value):
    """A row with its numbers to five digits: more say nothing, and make a long file longer."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def is_ours(name: str) -> bool:
    """Whether a contender or lane is a backend of fastlstm."""
    return name.removesuffix(GRAPH) in BACKENDS


def calls_of(seconds: float, least: int) -> int:
    """How many calls make a sample; a multiple of the input sets where several fit."""
    count = max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / max(seconds, 1e-9))))
    return count if count < least else count - count % least


def run_cell(
    bench: Bench,
    cell: GpuCell,
    *,
    seconds: float,
    product_rate: float,
    exclude: dict[str, str],
    mark: Callable[[str], None],
    known: dict | None = None,
) -> tuple[dict[str, object], dict]:
    """The row of a cell in its precision, and what of it is nn.LSTM's; raises `ContextLost`."""
    with fp32_precision(PRECISIONS[cell.precision][1]):
        run = CellRun(bench, cell, exclude, mark, known)
        return run.run(seconds, product_rate), run.of_torch()


def make_bench(device: Device, cell: GpuCell, case: Case) -> Bench:
    """The bench of a cell, set up in its precision. ``case``: the cell's, or in a dry run what
    stands in for it.
    """
    with fp32_precision(PRECISIONS[cell.precision][1]):
        return Bench(device, cell, case)


def failed_row(cell: GpuCell, case: Case, device: Device, error: str) -> dict[str, object]:
    """The row of a cell that could not be set up."""
    return {
        **asdict(case),
        "dtype": cell.precision,
        "mode": cell.mode,
        "device": device.name,
        "status": "failed",
        "error": error,
        **{key: {} for key in ("times", "ratios", "notes", "budget_used", "peak_bytes")},
    }
