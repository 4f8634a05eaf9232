"""The parts of a run, what each may take, and how they are run one after the other.

A part ends ``done``, ``failed`` (it found something wrong), ``cut`` (the time ran out; the next run
goes on) or ``skipped`` (it was not begun).
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import stand_ins
from benchmarks.common.precision import PRECISIONS
from benchmarks.gpu import build, costs, profile, sanitizer, suite
from benchmarks.gpu.cells import cells_of
from benchmarks.gpu.drive import drive
from benchmarks.gpu.journal import Journal

BENCHES = tuple(f"bench {name}" for name in PRECISIONS)
# In order of worth: what must be known first stands first.
PARTS = (
    "build", "probe", "tests", "bench bf16", "sanitizer", "bench fp32", "edges", "profile",
    "bench fp16", "bench tf32", "report",
)  # fmt: skip
# A part is not begun with less than this, in seconds.
LEAST_SECONDS = {"probe": 20.0, "tests": 45.0, "sanitizer": 30.0, "profile": 25.0, "report": 0.0}
LEAST_BENCH_SECONDS = 30.0
# Of the whole time, where other parts follow: the first run should see something of each.
MOST_SHARE = {"tests": 0.5, "sanitizer": 0.25, "profile": 0.2}
# Kept for the report.
REPORT_SECONDS = 20.0
# A child stops by itself; this much later it is killed.
GRACE_SECONDS = 15.0
NCU_LAUNCHES = 12


@dataclass
class Context:
    """What the parts share.

    ``stop``: `time.time` at which the part that runs must end. ``share``: (k, n) of the cells;
    ``most_cells`` of a part; ``tests``: an expression for pytest -k; ``logs``: a folder.
    """

    journal: Journal
    logs: Path
    dry: bool
    stop: float
    architecture: str
    share: tuple[int, int] = (1, 1)
    most_cells: int | None = None
    cell_seconds: float = 1.2
    tests: str | None = None

    def left(self) -> float:
        return self.stop - time.time()

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)


def parse_parts(words: Sequence[str]) -> list[str]:
    """The parts that the command line asks for, in order of worth; ValueError names a wrong word.

    ``bench`` may be followed by precisions; without any it stands for all four.
    """
    wanted, words = set(), list(words)
    for place, word in enumerate(words):
        if word == "bench":
            if place + 1 == len(words) or words[place + 1] not in PRECISIONS:
                wanted |= set(BENCHES)
        elif word in PRECISIONS and "bench" in words[:place]:
            wanted.add(f"bench {word}")
        elif word in PARTS:
            wanted.add(word)
        else:
            benches = "bench [bf16 fp16 fp32 tf32]"
            expected = f"build, probe, tests, sanitizer, {benches}, edges, profile, report"
            raise ValueError(f"part: got {word!r}, expected one of {expected}")
    return [part for part in PARTS if part in wanted] if wanted else list(PARTS)


def run_parts(context: Context, parts: Sequence[str], stop: float) -> dict[str, str]:
    """Run the parts, all but the report, until ``stop``; gives their states."""
    states, whole = {}, stop - time.time()
    parts = [part for part in parts if part != "report"]
    for part in parts:
        left = stop - REPORT_SECONDS - time.time()
        if part != parts[-1]:
            left = min(left, MOST_SHARE.get(part, 1.0) * whole)
        least = LEAST_SECONDS.get(part, LEAST_BENCH_SECONDS if part in timed_parts() else 0.0)
        if left < (0.0 if context.dry else least):
            states[part] = "skipped"
            context.say(f"{part}: left out, {max(left, 0):.0f} s are left and it needs {least:.0f}")
            continue
        context.stop = time.time() + left
        print(f"{part}: at most {left:.0f} s", flush=True)
        began = time.time()
        states[part] = runner(part)(context)
        seconds = round(time.time() - began, 1)
        share = "" if context.share == (1, 1) else " {}/{}".format(*context.share)
        context.journal.append("part", f"{part}{share}", state=states[part], seconds=seconds)
        print(f"{part}: {states[part]} in {seconds:.0f} s", flush=True)
    return states


def timed_parts() -> tuple[str, ...]:
    return (*BENCHES, "edges")


def runner(part: str) -> Callable[[Context], str]:
    if part in timed_parts() or part == profile.PART:
        return lambda context: run_worker(context, part)
    return {"build": build.run, "probe": costs.run, "tests": suite.run, "sanitizer": sanitizer.run}[
        part
    ]


def run_worker(context: Context, part: str) -> str:
    """A part that a `worker` goes through."""
    if part in timed_parts():
        done = context.journal.latest("row")
        cells = cells_of(part, context.share, context.most_cells)
        if all(cell.key(part) in done for cell in cells):
            context.say("all its cells are in the journal (--fresh measures them again)")
            return judged(context, part)
    grace = min(GRACE_SECONDS, context.left() / 4)
    if context.dry:
        stand_ins.prepare_environment()
    command = [sys.executable, "-m", "benchmarks.gpu.worker", part]
    command += ["--share", "{}/{}".format(*context.share), "--stop", f"{context.stop - grace:.1f}"]
    command += ["--cell-seconds", str(context.cell_seconds)]
    if context.most_cells is not None:
        command += ["--cells", str(context.most_cells)]
    log = context.logs / f"{part.replace(' ', '-')}.log"
    journal = context.journal
    outcome = drive(command, journal, f"{part}/", stop=context.stop, log=log, pulse=[journal.path])
    for text in outcome.broken:
        context.say(f"broken: {text}")
    if outcome.state == "failed":
        context.say(f"the worker ended early: {outcome.why}")
        context.journal.append("note", part, text=outcome.why)
        return "failed"
    left = context.journal.latest("left").get(part, {}).get("cells", 0)
    if outcome.state == "time" or left:
        context.say(f"{left or 'some'} cells are left for another run")
    if part == profile.PART:
        run_ncu(context)
        state = "failed" if outcome.broken else "done"
    else:
        state = judged(context, part)
    return "cut" if state == "done" and (outcome.state == "time" or left) else state


def judged(context: Context, part: str) -> str:
    """``failed`` if a row of the part is, else ``done``; says what failed."""
    prefix = f"{part}/"
    rows = [r["row"] for k, r in context.journal.latest("row").items() if k.startswith(prefix)]
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed[:10]:
        sizes = f"T{row['T']}-N{row['N']}-H{row['H']} {row['variant']}"
        context.say(f"failed: {sizes} {row['dtype']} {row['mode']}: {row['error'][:300]}")
    context.say(f"{len(rows) - len(failed)} cells of {part} are right, {len(failed)} failed")
    return "failed" if failed else "done"


def run_ncu(context: Context) -> None:
    """Nsight Compute over a few launches of the sanitizer's driver, where it is installed; what it
    prints is a log beside the others, and nothing depends on it.
    """
    executable = shutil.which("ncu")
    if context.dry or executable is None or context.left() < 40:
        return
    log = context.logs / "ncu.csv"
    options = ["--clock-control", "none", "--kernel-name", f"regex:{sanitizer.KERNELS}"]
    options += ["--launch-count", str(NCU_LAUNCHES), "--set", "basic", "--csv"]
    options += ["--log-file", str(log)]
    for backend in sanitizer.BACKENDS:
        seconds = min(60.0, context.left() / 2)
        line = [executable, *options, *sanitizer.driver(backend)]
        line[line.index(str(log))] = str(log.with_name(f"ncu-{backend}.csv"))
        ended = sanitizer.attempt(line, sanitizer.environment("ncu"), seconds)
        context.journal.append("note", "ncu", text=f"{backend}: {ended['said'][-200:]}")
