"""FastLSTM beside other engines (engines.py), each in a process of its own, in turns.

One engine's pool of threads would spin against another's in one process. So every engine has its
own, and these take turns: in a round each is called for a short while, in an order that is reversed
from round to round, so that the machine's noise meets all of them. The median of its calls is an
engine's time in a round; ratios pair the times of a round, as in timing.py.
"""

from __future__ import annotations

import contextlib
import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from benchmarks.common.machine import ROOT
from benchmarks.common.shapes import Case
from benchmarks.common.timing import MIN_REPS, paired_ratio, spread
from benchmarks.cpu.engines import ENGINES, FAST, FAST_STORED

# T, N, I, H: a call of one step, streams of one row, small batches and a larger one.
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
OURS = (FAST, FAST_STORED)
BURST_SECONDS = 0.02
MOST_ROUNDS = 25
# After a burst of several threads, so that the pool's waiting threads have gone to sleep.
REST_SECONDS = 0.01
ANSWER_SECONDS = 300.0


def cases() -> list[Case]:
    return [Case(*shape) for shape in SHAPES]


class Engine:
    """A process that serves one engine."""

    def __init__(self, name: str, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.cpu.engines", name, str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL, **pipes
        )

    def ask(self, **request: object) -> dict[str, object]:
        """The process's answer; one that has ended or takes too long answers with an error."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], ANSWER_SECONDS)[0]:
                self.process.kill()
                return {"error": f"no answer in {ANSWER_SECONDS:g} s"}
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):  # a pipe without a reader; an end in place of a line
            return {"error": f"its process ended with status {self.process.wait()}"}

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
    names: Sequence[str] = tuple(ENGINES),
) -> Iterator[dict[str, object]]:
    """A row for each thread count and case; ``seconds``: for all rounds of a case."""
    for count in threads:
        with started(names, count) as engines:
            for case in given:
                yield measured_row(case, count, engines, seconds)


def measured_row(
    case: Case, threads: int, engines: Mapping[str, Engine], seconds: float
) -> dict[str, object]:
    """``times`` (of rounds) and ``budget_used`` by engine; ``notes``: why one is missing;
    ``ratios``: FastLSTM's against the best of the others. It failed if that is not there.
    """
    row = {**asdict(case), "dtype": "float32", "mode": "infer", "threads": threads}
    row |= {"device": "cpu", "status": "ok", "error": None}
    answers = {name: engine.ask(case=asdict(case)) for name, engine in engines.items()}
    notes = {name: each["error"] for name, each in answers.items() if "error" in each}
    row["budget_used"] = {n: each["budget_used"] for n, each in answers.items() if n not in notes}
    here = {name: engine for name, engine in engines.items() if name not in notes}
    times = take_turns(here, threads, seconds, notes)
    row |= {"notes": notes, "times": {name: spread(each) for name, each in times.items()}}
    others = [name for name in times if name not in OURS]
    if FAST not in times or not others:
        reason = notes.get(FAST, "no other engine runs: " + "; ".join(notes.values()))
        return row | {"status": "failed", "error": reason, "ratios": {}}
    best = min(others, key=lambda name: row["times"][name]["median_s"])
    row["ratios"] = {
        name: {"of": best, **paired_ratio(times[best], times[name])}
        for name in OURS
        if name in times
    }
    return row


def take_turns(
    engines: Mapping[str, Engine], threads: int, seconds: float, notes: dict[str, str]
) -> dict[str, list[float]]:
    """An engine's time in each round. One that fails on the way is left out, with a note."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    order, stop = list(engines), time.perf_counter() + seconds
    for rounds in range(MOST_ROUNDS):
        if rounds >= MIN_REPS and time.perf_counter() >= stop:
            break
        for name in order:
            if name in notes:
                continue
            answer = engines[name].ask(seconds=BURST_SECONDS)
            if "error" in answer:
                notes[name] = answer["error"]
                del times[name]
                continue
            times[name].append(statistics.median(answer["times"]))
            if threads > 1:
                time.sleep(REST_SECONDS)
        order.reverse()
    return times


def label(row: dict) -> str:
    return f"{row['T']},{row['N']},{row['I']},{row['H']} x{row['threads']}"


def outcome(row: dict) -> str:
    if row["status"] == "failed":
        return row["error"]
    ratio = row["ratios"][FAST]
    return f"{ratio['ratio']:.2f} of {ratio['of']}"
