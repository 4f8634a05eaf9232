"""A child process under watch: it may crash, hang or run out of time; what it had finished stays.

The child writes into the journal what it begins and what it has finished. Where it dies or falls
silent in the middle of something, that is recorded as broken, with the reason, and another child
goes on with the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from benchmarks.common.machine import ROOT
from benchmarks.gpu.journal import Journal

MOST_CHILDREN = 15
# The status of a child that has recorded what it did, and can use the GPU no more.
LOST = 70
# Starting python, torch and a CUDA context, and compiling kernels, are the longest silences.
STALL_SECONDS = 120.0
# Before this nobody is asked.
LEAST_STALL = 0.5
LOG_TAIL = 1500
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_SET_PARENT_DEATH_SIGNAL = 1


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
    pulse: Sequence[Path] = (),
    stall: float | Callable[[dict | None], float] = STALL_SECONDS,
    start: Callable | None = None,
) -> Outcome:
    """Run ``command`` until it ends with a status in ``finished``, again after each break.

    Args:
        prefix: of the keys under which the child writes into ``journal``.
        stop: `time.time` at which the child is killed. What it was doing then is not broken.
        log: where what the child prints goes, appended.
        finished: the statuses of a child that has come to its end; `LOST` asks for another child.
        pulse: files that grow while the child gets on, beside the log.
        stall: seconds without growth after which the child is killed; or what gives them for the
        mark of what the child is at, None before its first.
        start: what starts the child, as `execute`.
    """
    outcome = Outcome("finished")
    for _ in range(MOST_CHILDREN):
        env = os.environ | journal.environment() | (environment or {})
        began = time.time()

        def allowed(began=began) -> float:
            mark = journal.in_progress(prefix)
            return stall(mark if mark is not None and mark["at"] >= began - 1 else None)

        patience = allowed if callable(stall) else stall
        status, reason = watch(command, env, stop, log, (log, *pulse), patience, start)
        if status in finished:
            return outcome
        if reason == "time":
            outcome.state = "time"
            return outcome
        mark = journal.in_progress(prefix)
        if mark is not None:
            journal.append("broken", mark["key"], contender=mark["contender"], reason=reason)
            outcome.broken.append(f"{mark['key']} {mark['contender']}: {reason}")
        elif status != LOST:
            outcome.state, outcome.why = "failed", f"{reason}: {tail(log)}"
            return outcome
    outcome.state, outcome.why = "failed", f"{MOST_CHILDREN} processes broke one after the other"
    return outcome


def watch(
    command: Sequence[str],
    env: dict[str, str],
    stop: float,
    log: Path,
    pulse: Sequence[Path],
    stall: float | Callable[[], float],
    start: Callable | None = None,
) -> tuple[int, str]:
    """One child from start to end: its status, and why it ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = (start or execute)(command, env, out)
        try:
            return wait(child, stop, pulse, stall)
        finally:
            kill(child)


def execute(command: Sequence[str], env: Mapping[str, str], out: BinaryIO) -> subprocess.Popen:
    """A child that runs a program; what it prints goes to ``out``."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**env, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        preexec_fn=leash,
    )


def leash() -> None:
    """In the child: a process group of its own, that can be killed as one, and on Linux the wish to
    be killed when this process is, which may end without a chance to do it.
    """
    os.setpgid(0, 0)
    if _LIBC is not None:
        _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def wait(
    child: subprocess.Popen,
    stop: float,
    pulse: Sequence[Path],
    stall: float | Callable[[], float],
) -> tuple[int, str]:
    seen, since = -1, time.time()
    while child.poll() is None:
        grown = sum(path.stat().st_size for path in pulse if path.exists())
        if grown != seen:
            seen, since = grown, time.time()
        if time.time() > stop:
            return -1, "time"
        silent = time.time() - since
        if silent > LEAST_STALL and silent > (stall() if callable(stall) else stall):
            return -1, f"no sign of life for {silent:.0f} s, killed"
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
