"""compute-sanitizer's four tools over `sanitizer_driver`, one row for each tool and backend.

* memcheck: accesses out of bounds or misaligned. torch's allocator would put several tensors into
  one allocation, where an overrun is not out of bounds: it is turned off.
* racecheck: hazards in shared memory. synccheck: wrong use of barriers.
* initcheck: reads of global memory that nothing wrote. It must see the writes of all kernels, so it
  gets no filter; what it says of others' kernels is not counted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.fake import BACKENDS
from benchmarks.gpu.sanitizer_driver import DONE
from benchmarks.machine import ROOT

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PART = "sanitizer"
# In the mangled name of every kernel of fastlstm, by its namespace or its own name.
KERNELS = "lstm"
FOUND_EXIT = 9
TOOL_SECONDS = 150.0
SAID_LENGTH = 1500


def find_tool() -> str | None:
    """Path of compute-sanitizer, on PATH or in the toolkit, or None."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    beside = [f"{home}/bin/compute-sanitizer" for home in homes if home]
    return next(filter(None, map(shutil.which, ["compute-sanitizer", *beside])), None)


def command(tool: str, backend: str, log: Path, executable: str) -> list[str]:
    options = ["--tool", tool, "--log-file", str(log), "--error-exitcode", str(FOUND_EXIT)]
    options += ["--print-limit", "50", "--launch-timeout", "60"]
    options += ["--target-processes", "application-only"]
    if tool == "memcheck":  # torch tries some calls of the CUDA API that may fail
        options += ["--report-api-errors", "no"]
    if tool != "initcheck":
        options += ["--kernel-name", f"kns={KERNELS}"]
    return [executable, *options, *driver(backend)]


def driver(backend: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.sanitizer_driver", backend]


def environment(tool: str) -> dict[str, str]:
    if tool in ("memcheck", "initcheck"):
        return os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return dict(os.environ)


def run(context) -> str:
    """Run the tools that are not in the journal; gives the part's state (see `plan`)."""
    journal, state = context.journal, "done"
    done = journal.latest("sanitizer")
    executable = find_tool()
    for backend in BACKENDS:
        if all(f"{PART}/{tool}/{backend}" in done for tool in TOOLS):
            continue
        plain = attempt(driver(backend), dict(os.environ), context.left())
        for tool in TOOLS:
            key = f"{PART}/{tool}/{backend}"
            if key in done:
                continue
            if context.left() < 15:
                return "cut"
            log = context.logs / f"{tool}-{backend}.log"
            row = {"tool": tool, "backend": backend, "seconds": 0.0}
            if not plain["finished"]:
                last = plain["said"].splitlines()[-1:]
                row |= {"status": "failed", "said": f"without the tool: {''.join(last)}"}
            elif context.dry:
                context.say(" ".join(command(tool, backend, log, "compute-sanitizer")))
                row |= {"status": "unavailable", "said": "a dry run: not started"}
            elif executable is None:
                row |= {"status": "unavailable", "said": "no compute-sanitizer on this machine"}
            else:
                given = (tool, backend, log, executable)
                row |= one(*given, min(TOOL_SECONDS, context.left()))
            context.say(f"{tool} {backend}: {row['status']}: {row['said'].splitlines()[0]}")
            journal.append("sanitizer", key, part=PART, **row)
    rows = journal.latest("sanitizer").values()
    return "failed" if any(row["status"] == "failed" for row in rows) else state


def attempt(line: list[str], env: dict[str, str], seconds: float) -> dict[str, object]:
    """A command's end: ``finished`` (it made all its calls), ``status``, ``said`` (its last
    words).
    """
    began = time.time()
    try:
        done = subprocess.run(
            line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=max(seconds, 1.0)
        )
        said = (done.stdout + done.stderr).strip()[-SAID_LENGTH:]
        found = {"finished": DONE in done.stdout, "status": done.returncode, "said": said}
    except subprocess.TimeoutExpired:
        found = {"finished": False, "status": None, "said": f"stopped after {seconds:.0f} s"}
    except OSError as error:
        found = {"finished": False, "status": None, "said": f"{type(error).__name__}: {error}"}
    return found | {"seconds": round(time.time() - began, 1)}


def one(tool: str, backend: str, log: Path, executable: str, seconds: float) -> dict[str, object]:
    """Run one tool; ``status``: ok, failed (it found something), unavailable (it did not run)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    ended = attempt(command(tool, backend, log, executable), environment(tool), seconds)
    text = log.read_text(errors="replace") if log.exists() else ""
    reports = ours(text)
    summary = re.findall(r"^=+ .*SUMMARY: .*$", text, re.MULTILINE)
    row = {"seconds": ended["seconds"], "reports": len(reports)}
    if reports:
        return row | {"status": "failed", "said": "\n".join(reports)[:SAID_LENGTH]}
    if summary and ended["finished"] and (tool == "initcheck" or counts_nothing(summary[-1])):
        return row | {"status": "ok", "said": summary[-1].strip("= ")}
    if summary and not counts_nothing(summary[-1]):
        return row | {"status": "failed", "said": text[-SAID_LENGTH:]}
    said = f"exit status {ended['status']}: {text[-400:].strip()} {ended['said'][-800:]}"
    return row | {"status": "unavailable", "said": said}


def counts_nothing(summary: str) -> bool:
    """Whether a summary line says 0 errors, or 0 hazards."""
    return re.search(r"SUMMARY: 0 (errors?|hazards?)", summary) is not None


def ours(text: str) -> list[str]:
    """The reports that name a kernel of fastlstm: blocks of lines between two empty ones. What was
    on the host's stack at the launch does not count.
    """
    found = []
    for block in re.split(r"^=+ *$", text, flags=re.MULTILINE):
        lines = [line.strip("= ") for line in block.strip().splitlines()]
        lines = [s for s in lines if "SUMMARY" not in s and "COMPUTE-SANITIZER" not in s]
        if any(KERNELS in line for line in lines if "Host Frame" not in line):
            found.append("\n".join(lines))
    return found
