"""A child process under watch: it may crash, hang or run out of time; what it had finished stays.

The child writes into the journal what it begins and what it has finished. Where it dies or falls
silent in the middle of something, that is recorded as broken, with the reason, and another child
goes on with the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.journal import Journal
from benchmarks.machine import ROOT

MOST_CHILDREN = 40
# Starting python, torch and a CUDA context, and compiling kernels, are the longest silences.
STALL_SECONDS = 100.0
LOG_TAIL = 1500


@dataclass
class Outcome:
    """How a child's work ended: ``finished``, ``time`` (it ran out), ``failed`` (with ``why``)."""

    state: str
    why: str = ""
    broken: list[str] = field(default_factory=list)


def drive(
    command: Sequence[str],
    journal: Journal,
    prefix: str,
    *,
    stop: float,
    log: Path,
    environment: dict[str, str] | None = None,
    finished: Sequence[int] = (0,),
    stall: float = STALL_SECONDS,
) -> Outcome:
    """Run ``command`` until it ends with a status in ``finished``, again after each break.

    Args:
        prefix: of the keys under which the child writes into ``journal``.
        stop: `time.time` at which the child is killed. What it was doing then is not broken.
        log: where what the child prints goes, appended.
        stall: seconds without a new line in the journal or the log after which it is killed.
    """
    outcome = Outcome("finished")
    for _ in range(MOST_CHILDREN):
        status, reason = watch(command, journal, stop, log, environment or {}, stall)
        if status in finished:
            return outcome
        if reason == "time":
            outcome.state = "time"
            return outcome
        mark = journal.in_progress(prefix)
        if mark is not None:
            journal.append("broken", mark["key"], contender=mark["contender"], reason=reason)
            outcome.broken.append(f"{mark['key']} {mark['contender']}: {reason}")
        elif not said_it_broke(journal, prefix):
            outcome.state, outcome.why = "failed", f"{reason}: {tail(log)}"
            return outcome
    outcome.state, outcome.why = "failed", f"{MOST_CHILDREN} processes broke one after the other"
    return outcome


def said_it_broke(journal: Journal, prefix: str) -> bool:
    """Whether the child itself recorded what broke it: then another one gets further."""
    records = [r for r in journal.records() if r["key"].startswith(prefix)]
    return bool(records) and records[-1]["kind"] == "broken"


def watch(
    command: Sequence[str],
    journal: Journal,
    stop: float,
    log: Path,
    environment: dict[str, str],
    stall: float,
) -> tuple[int, str]:
    """One child from start to end: its status, and why it ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    env = os.environ | journal.environment() | {"PYTHONUNBUFFERED": "1"} | environment
    with log.open("ab") as out:
        child = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True
        )
        try:
            return wait(child, journal, stop, log, stall)
        finally:
            kill(child)


def wait(
    child: subprocess.Popen, journal: Journal, stop: float, log: Path, stall: float
) -> tuple[int, str]:
    seen, since = -1, time.time()
    while child.poll() is None:
        grown = sum(path.stat().st_size for path in (journal.path, log) if path.exists())
        if grown != seen:
            seen, since = grown, time.time()
        if time.time() > stop:
            return -1, "time"
        if time.time() - since > stall:
            return -1, f"no sign of life for {stall:.0f} s, killed"
        time.sleep(0.1)
    status = child.returncode
    if status < 0:
        return status, f"killed by signal {signal.Signals(-status).name}"
    return status, f"ended with status {status}"


def kill(child: subprocess.Popen) -> None:
    """End the child and what it has started. A process that the GPU's driver holds may take a while
    to go; nothing waits for it.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        print(f"process {child.pid} does not end", file=sys.stderr)


def tail(log: Path) -> str:
    """The end of what a child printed."""
    return log.read_text(errors="replace")[-LOG_TAIL:].strip() if log.exists() else ""
