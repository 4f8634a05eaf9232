"""The parts of a run, what each may take, and how they are run one after the other.

A part ends ``done``, ``failed`` (it found something wrong), ``cut`` (the time ran out; the next run
goes on) or ``skipped`` (it was not begun).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from benchmarks.common import stand_ins
from benchmarks.common.precision import PRECISIONS
from benchmarks.gpu import build, costs, forced, host, profile, sanitizer, suite, verdicts
from benchmarks.gpu.cells import cells_of
from benchmarks.gpu.cells import expected_seconds as expect_cell
from benchmarks.gpu.contenders import contenders_of
from benchmarks.gpu.drive import STALL_SECONDS, drive, execute, wait
from benchmarks.gpu.drive import kill as end
from benchmarks.gpu.forks import Forks
from benchmarks.gpu.journal import Journal

BENCHES = tuple(f"bench {name}" for name in PRECISIONS)
# In order of worth: what must be known first stands first. A run of eight minutes comes as far as
# the edges; the next one goes on from there.
PARTS = (
    "build", "probe", "verdicts", "bench bf16", "families", "host", "bench fp32", "bench tf32",
    "edges", "tests", "sanitizer", "profile", "bench fp16", "report",
)  # fmt: skip
# A part is not begun with less than this, in seconds.
LEAST_SECONDS = {
    "probe": 10.0, "verdicts": 20.0, "families": 10.0, "host": 10.0, "tests": 30.0,
    "sanitizer": 30.0, "profile": 25.0,
}  # fmt: skip
LEAST_BENCH_SECONDS = 15.0
# What a part may take of a run of eight minutes, in seconds, and of a longer or shorter one in
# proportion; a part that is done sooner leaves the rest to those behind it. Building is not
# counted: a library is packed beforehand, or takes the time that it takes.
PLANNED_SECONDS = {
    "probe": 20.0, "verdicts": 60.0, "bench bf16": 190.0, "families": 50.0, "host": 40.0,
    "bench fp32": 35.0, "bench tf32": 20.0, "edges": 35.0, "tests": 150.0, "sanitizer": 60.0,
    "profile": 60.0, "bench fp16": 60.0,
}  # fmt: skip
MINUTES = 8.0
# How many cells of these parts a run of eight minutes is to finish: of bfloat16 all with T = 512.
FIRST_CELLS = {"bench bf16": 56, "bench fp32": 12, "bench tf32": 6, "edges": 10}
# From starting a worker to its first cell: importing torch, opening the GPU, the library.
WORKER_SECONDS = 8.0
# Kept for the report.
REPORT_SECONDS = 30.0
# A child stops by itself; this much later it is killed.
GRACE_SECONDS = 5.0
NCU_LAUNCHES = 12


@dataclass
class Context:
    """What the parts share.

    ``stop``: `time.time` at which the part that runs must end. ``share``: (k, n) of the cells;
    ``most_cells`` of a part; ``tests``: an expression for pytest -k; ``logs``: a folder; ``forks``:
    what starts Python's processes, None where each is a new Python.
    """

    journal: Journal
    logs: Path
    dry: bool
    stop: float
    architecture: str
    share: tuple[int, int] = (1, 1)
    most_cells: int | None = None
    cell_seconds: float = 0.5
    tests: str | None = None
    forks: Forks | None = None

    def start(self, command: Sequence[str], env: Mapping[str, str], out: BinaryIO):
        """A child that runs a module, of the name and arguments in ``command``."""
        if self.forks is None:
            return execute([sys.executable, "-m", *command], env, out)
        return self.forks.start(command, env, out)

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
            rest = [part for part in PARTS if not part.startswith("bench")]
            expected = ", ".join([*rest, benches])
            raise ValueError(f"part: got {word!r}, expected one of {expected}")
    return [part for part in PARTS if part in wanted] if wanted else list(PARTS)


def run_parts(context: Context, parts: Sequence[str], stop: float) -> dict[str, str]:
    """Run the parts, all but the report, until ``stop``; gives their states."""
    states, whole = {}, stop - time.time()
    parts = [part for part in parts if part != "report"]
    loaded = False
    for part in parts:
        if not loaded and part != build.PART:
            loaded = True  # only now is the library there
            if context.forks is not None:
                context.forks.preload()
        left = stop - REPORT_SECONDS - time.time()
        if part != parts[-1] and not context.dry:
            left = min(left, share_of(part, parts, whole))
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


def share_of(part: str, parts: Sequence[str], whole: float) -> float:
    """Seconds that a part may take where others follow: as planned for eight minutes, and what the
    parts that are not asked for leave, shared out."""
    in_a_run, planned = 0.0, PLANNED_SECONDS
    for each in PARTS:  # those that a run of eight minutes comes to
        if each in parts and each in planned and in_a_run + planned[each] <= 60 * MINUTES:
            in_a_run += planned[each]
    return planned.get(part, whole) * max(whole - REPORT_SECONDS, 1.0) / max(in_a_run, 1.0)


def expected_seconds(part: str, cell_seconds: float) -> float:
    """What a part of an eight-minute run is expected to take, by counting what it does."""
    if part in timed_parts():
        first = cells_of(part)[: FIRST_CELLS[part]]
        lanes = [2 * len(contenders_of(cell)) for cell in first]
        each = (expect_cell(c, n, cell_seconds) for c, n in zip(first, lanes, strict=True))
        return WORKER_SECONDS + sum(each)
    if part == verdicts.PART:
        return verdicts.expected_seconds()
    if part in (forced.PART, host.PART):
        return WORKER_SECONDS + {forced.PART: forced, host.PART: host}[part].expected_seconds()
    return PLANNED_SECONDS[part]


def timed_parts() -> tuple[str, ...]:
    return (*BENCHES, "edges")


def runner(part: str) -> Callable[[Context], str]:
    if part in timed_parts() or part in (profile.PART, forced.PART, host.PART):
        return lambda context: run_worker(context, part)
    others = {
        "build": build.run, "probe": costs.run, "verdicts": run_verdicts, "tests": suite.run,
        "sanitizer": sanitizer.run,
    }  # fmt: skip
    return others[part]


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
    command = ["benchmarks.gpu.worker", part]
    command += ["--share", "{}/{}".format(*context.share), "--stop", f"{context.stop - grace:.1f}"]
    command += ["--cell-seconds", str(context.cell_seconds)]
    if context.most_cells is not None:
        command += ["--cells", str(context.most_cells)]
    log = context.logs / f"{part.replace(' ', '-')}.log"
    journal = context.journal
    outcome = drive(
        command, journal, f"{part}/", stop=context.stop, log=log, pulse=[journal.path],
        stall=verdicts.DRY_STALL_SECONDS if context.dry else patience, start=context.start,
    )  # fmt: skip
    for text in outcome.broken:
        context.say(f"broken: {text}")
    if outcome.state == "failed":
        context.say(f"the worker ended early: {outcome.why}")
        context.journal.append("note", part, text=outcome.why)
        return "failed"
    left = context.journal.latest("left").get(part, {}).get("cells", 0)
    if outcome.state == "time" or left:
        context.say(f"{left or 'some'} cells are left for another run")
    if part not in timed_parts():
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


def patience(mark: dict | None) -> float:
    """Seconds of silence after which a worker is taken to hang: it begins by importing torch; then
    a kernel of ours that waits in vain has trapped after two, Triton compiles, and a whole cell is
    timed without a word."""
    if mark is None:
        return STALL_SECONDS
    contender = mark["contender"]
    return 60.0 if "triton" in contender or contender in ("timing", "setup") else 20.0


def run_verdicts(context: Context) -> str:
    """The verdicts, and the sanitizer on exchanges between blocks beside them."""
    journal, log = context.journal, context.logs / "verdicts.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if context.dry:
        stand_ins.prepare_environment()
    processes = max(1, min(verdicts.PROCESSES, (os.cpu_count() or 2) - 4))
    command = ["benchmarks.gpu.verdicts", "--processes", str(processes)]
    with log.open("ab") as out, ThreadPoolExecutor(1) as pool:
        child = context.start(command, os.environ | journal.environment(), out)
        looked = pool.submit(sanitizer.exchanges, context)
        stall = verdicts.DRY_STALL_SECONDS if context.dry else verdicts.STALL_SECONDS
        status, why = wait(child, context.stop, [journal.path], 3 * stall)
        end(child)
        rows = looked.result()
    found = journal.latest("verdict")
    for line in verdicts.table(found):
        context.say("{:<20} {:<5} {:<14} {:<14} {}".format(*line))
    bad = verdicts.bad_families(found)
    wrong = any(word not in ("ok", "not possible") for r in found.values() for word in r["passes"].values())
    if bad:
        rest = [name for name in forced.NAMES if name not in bad or name == "step"]
        os.environ[forced.VARIABLE] = " ".join(rest)
        context.say(f"the rest of the run goes on with {forced.VARIABLE}={' '.join(rest)!r}")
        journal.append("note", verdicts.PART, text=f"left out after the verdicts: {bad}")
    if status != 0 and why != "time":
        context.say(f"the verdicts ended early: {why}")
    if wrong or (status != 0 and why != "time") or any(r["status"] == "failed" for r in rows):
        return "failed"
    expected = sum(len(verdicts.items(*g, context.dry)) for g in verdicts.groups(context.dry))
    return "done" if len(found) >= expected else "cut"
