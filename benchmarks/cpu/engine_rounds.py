"""FastLSTM and other engines (engines.py), each in a process of its own, measured in turns.

In one process the spinning threads of one engine would slow down another's. So every engine has its
own process, and these take turns: in a round each is called for a short time, in an order that is
reversed from round to round, so that the machine's noise affects all. All of a round run on the same
cores, the next round's on the next ones: left to the scheduler a process stays where it was, and
where somebody else is busy on one core's other thread, that engine alone looks slow. An engine's time
in a round is the median of its calls; ratios are taken within rounds, as in timing.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.common.machine import ROOT
from benchmarks.common.shapes import Case
from benchmarks.common.timing import MIN_REPS, paired_ratio, spread
from benchmarks.cpu import int8_engines
from benchmarks.cpu.engines import ENGINES, FAST, FAST_STORED

# T, N, I, H: calls of one step, sequences of one row, small batches and a larger one.
SHAPES = (
    (1, 1, 64, 64),
    (1, 1, 256, 512),
    (50, 1, 40, 96),
    (100, 1, 128, 256),
    (200, 1, 64, 320),
    (100, 1, 512, 512),
    (64, 1, 1024, 1024),
    (48, 8, 100, 200),
    (90, 24, 80, 160),
    (75, 48, 384, 384),
)
OURS = {"float32": (FAST, FAST_STORED), "int8": int8_engines.OURS}
NAMES = {"float32": tuple(ENGINES), "int8": tuple(int8_engines.ENGINES)}
BURST_SECONDS = 0.02
MOST_ROUNDS = 25
# After a burst of several threads the next engine waits until the pool's threads no longer spin (ONNX Runtime's do so
# for 50 ms): until the process has taken no time for REST_SECONDS, at most MOST_REST_SECONDS.
REST_SECONDS, MOST_REST_SECONDS = 0.01, 0.2
ANSWER_SECONDS = 300.0


def dtypes(asked: Sequence[str]) -> list[str]:
    """The dtypes of weights to compare: float32, unless only int8 is asked for."""
    found = [dtype for dtype in NAMES if dtype in asked]
    return found or ["float32"]


def cases() -> list[Case]:
    return [Case(*shape) for shape in SHAPES]


class Engine:
    """A process that serves one engine."""

    def __init__(self, name: str, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.cpu.engines", name, str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL, **pipes)

    def ask(self, **request: object) -> dict[str, object]:
        """The process's answer; an error if it has ended or takes too long."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], ANSWER_SECONDS)[0]:
                self.process.kill()
                return {"error": f"no answer in {ANSWER_SECONDS:g} s"}
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):  # a pipe without a reader; an end in place of a line
            return {"error": f"its process ended with status {self.process.wait()}"}

    def rest(self) -> None:
        """Returns once no thread of the process runs."""
        stop, before = time.perf_counter() + MOST_REST_SECONDS, -1
        while (now := self.ran_ns()) != before and time.perf_counter() < stop:
            before = now
            time.sleep(REST_SECONDS)

    def ran_ns(self) -> int:
        """The time that its threads have run; where the system does not say (not Linux), another number each time."""
        total = 0
        for thread in Path(f"/proc/{self.process.pid}/task").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                total += int((thread / "schedstat").read_text().split()[0])
        return total or time.perf_counter_ns()

    def move_to(self, cores: Sequence[int]) -> None:
        """Where all of the process's threads run from now on (Linux; elsewhere it stays as it is)."""
        for thread in Path(f"/proc/{self.process.pid}/task").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                os.sched_setaffinity(int(thread.name), cores)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def started(names: Sequence[str], threads: int) -> Iterator[dict[str, Engine]]:
    """A process for every engine while the block runs."""
    engines: dict[str, Engine] = {}
    try:
        for name in names:
            engines[name] = Engine(name, threads)
        yield engines
    finally:
        for engine in engines.values():
            engine.close()


def run(
    given: Sequence[Case],
    threads: Sequence[int],
    seconds: float,
    dtype: str = "float32",
) -> Iterator[dict[str, object]]:
    """A row for each thread count and case; ``seconds``: for all rounds of a case. dtype: that of
    the weights, "float32" or "int8"."""
    for count in threads:
        with started(NAMES[dtype], count) as engines:
            for case in given:
                yield measured_row(case, count, engines, seconds, dtype)


def measured_row(
    case: Case,
    threads: int,
    engines: Mapping[str, Engine],
    seconds: float,
    dtype: str = "float32",
) -> dict[str, object]:
    """``times`` (of rounds) and ``budget_used`` by engine, with int8 weights ``relative_errors``;
    ``notes``: why one is missing; ``ratios``: FastLSTM's against the best of the others. It failed
    if that is not there.
    """
    ours = OURS[dtype]
    row = {**asdict(case), "dtype": dtype, "mode": "infer", "threads": threads}
    row |= {"device": "cpu", "status": "ok", "error": None}
    answers = {name: engine.ask(case=asdict(case)) for name, engine in engines.items()}
    notes = {name: each["error"] for name, each in answers.items() if "error" in each}
    row["budget_used"] = {n: each["budget_used"] for n, each in answers.items() if n not in notes}
    errors = {n: each["relative_error"] for n, each in answers.items() if "relative_error" in each}
    row |= {"relative_errors": errors} if errors else {}
    here = {name: engine for name, engine in engines.items() if name not in notes}
    times = take_turns(here, threads, seconds, notes)
    row |= {"notes": notes, "times": {name: spread(each) for name, each in times.items()}}
    others = [name for name in times if name not in ours]
    if ours[0] not in times or not others:
        reason = notes.get(ours[0], "no other engine runs: " + "; ".join(notes.values()))
        return row | {"status": "failed", "error": reason, "ratios": {}}
    best = min(others, key=lambda name: row["times"][name]["median_s"])
    row["ratios"] = {name: {"of": best, **paired_ratio(times[best], times[name])} for name in ours if name in times}
    return row


def take_turns(
    engines: Mapping[str, Engine], threads: int, seconds: float, notes: dict[str, str]
) -> dict[str, list[float]]:
    """Each engine's time in each round. One that fails is left out, with a note."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    order, stop = list(engines), time.perf_counter() + seconds
    for rounds in range(MOST_ROUNDS):
        if rounds >= MIN_REPS and time.perf_counter() >= stop:
            break
        cores = cores_of_round(rounds, threads)
        for name in order:
            if name in notes:
                continue
            engines[name].move_to(cores)
            answer = engines[name].ask(seconds=BURST_SECONDS)
            if "error" in answer:
                notes[name] = answer["error"]
                del times[name]
                continue
            times[name].append(statistics.median(answer["times"]))
            if threads > 1:
                engines[name].rest()
        order.reverse()
    return times


def cores_of_round(number: int, threads: int) -> list[int]:
    """As many cores as threads, or all that this process may use, another choice each round (Linux; elsewhere none)."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    usable = sorted(os.sched_getaffinity(0))
    return [usable[(number + k) % len(usable)] for k in range(min(threads, len(usable)))]


def label(row: dict) -> str:
    dtype = "" if row["dtype"] == "float32" else f" {row['dtype']}"
    return f"{row['T']},{row['N']},{row['I']},{row['H']}{dtype} x{row['threads']}"


def outcome(row: dict) -> str:
    if row["status"] == "failed":
        return row["error"]
    ratio = row["ratios"][OURS[row["dtype"]][0]]
    return f"{ratio['ratio']:.2f} of {ratio['of']}"
