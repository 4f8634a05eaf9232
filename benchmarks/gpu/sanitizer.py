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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common.machine import ROOT
from benchmarks.common.stand_ins import BACKENDS
from benchmarks.gpu.drive import kill, leash
from benchmarks.gpu.sanitizer_driver import DONE

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PART = "sanitizer"
# In the mangled name of every kernel of fastlstm, by its namespace or its own name.
KERNELS = "lstm"
FOUND_EXIT = 9
TOOL_SECONDS = 150.0
LEAST_SECONDS = 15.0
SAID_LENGTH = 1500


def find_tool() -> str | None:
    """Path of compute-sanitizer, on PATH or in the toolkit, or None."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    beside = [f"{home}/bin/compute-sanitizer" for home in homes if home]
    return next(filter(None, map(shutil.which, ["compute-sanitizer", *beside])), None)


def kernel_filter(executable: str) -> str:
    """The option that names kernels; older versions call it otherwise."""
    helped = attempt([executable, "--help"], dict(os.environ), 30.0, SAID_LENGTH * 50)["said"]
    return "--kernel-regex" if "--kernel-regex" in helped else "--kernel-name"


def command(tool: str, which: list[str], log: Path, executable: str, named: str) -> list[str]:
    options = ["--tool", tool, "--log-file", str(log), "--error-exitcode", str(FOUND_EXIT)]
    options += ["--print-limit", "50", "--launch-timeout", "60"]
    options += ["--target-processes", "application-only"]
    if tool == "memcheck":  # torch tries some calls of the CUDA API that may fail
        options += ["--report-api-errors", "no"]
    if tool != "initcheck":
        options += [named, f"kns={KERNELS}"]
    return [executable, *options, *driver(*which)]


def driver(*which: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.sanitizer_driver", *which]


def environment(tool: str) -> dict[str, str]:
    if tool in ("memcheck", "initcheck"):
        return os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return dict(os.environ)


def run(context) -> str:
    """Run the tools that are not in the journal, those of a backend at once; gives the part's state
    (see `plan`).
    """
    journal = context.journal
    done = journal.latest("sanitizer")
    executable = find_tool()
    named = kernel_filter(executable) if executable else "--kernel-name"
    for backend in BACKENDS:
        tools = [tool for tool in TOOLS if f"{PART}/{tool}/{backend}" not in done]
        if not tools:
            continue
        if context.left() < LEAST_SECONDS:
            return "cut"
        # Alone first: it shows whether the calls work, and compiles what the tools then only load.
        plain = attempt(driver(backend), dict(os.environ), context.left())
        seconds = min(TOOL_SECONDS, context.left())

        def row_of(tool: str, backend=backend, plain=plain, seconds=seconds) -> dict:
            log = context.logs / f"{tool}-{backend}.log"
            row = {"tool": tool, "backend": backend, "seconds": 0.0}
            if not plain["finished"]:
                last = "".join(plain["said"].splitlines()[-1:])
                return row | {"status": "failed", "said": f"without the tool: {last}"}
            if context.dry:
                context.say(" ".join(command(tool, [backend], log, "compute-sanitizer", named)))
                return row | {"status": "unavailable", "said": "a dry run: not started"}
            if executable is None:
                said = "no compute-sanitizer on this machine"
                return row | {"status": "unavailable", "said": said}
            return row | one(tool, [backend], log, executable, seconds, named)

        at_once(context, tools, row_of, f"{PART}/{{}}/{backend}")
    rows = journal.latest("sanitizer").values()
    return "failed" if any(row["status"] == "failed" for row in rows) else "done"


def at_once(context, tools: list[str], row_of, key: str) -> None:
    """Run the tools beside each other; each row goes into the journal under `key` with its tool."""
    with ThreadPoolExecutor(max(len(tools), 1)) as pool:
        for tool, row in zip(tools, pool.map(row_of, tools), strict=True):
            first = (row["said"].splitlines() or [""])[0]
            context.say(f"{tool} {row['backend']}: {row['status']}: {first}")
            context.journal.append("sanitizer", key.format(tool), part=PART, **row)


def attempt(line: list[str], env: dict[str, str], seconds: float, length: int = SAID_LENGTH) -> dict[str, object]:
    """A command's end: ``finished`` (it made all its calls), ``status``, ``said`` (its last
    words).
    """
    began = time.time()
    found = {"finished": False, "status": None, "said": f"stopped after {seconds:.0f} s"}
    try:
        child = subprocess.Popen(
            line,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=leash,
        )
    except OSError as error:
        return found | {"said": f"{type(error).__name__}: {error}", "seconds": 0.0}
    try:
        said = child.communicate(timeout=max(seconds, 1.0))[0].strip()
        found = {"finished": DONE in said, "status": child.returncode, "said": said[-length:]}
    except subprocess.TimeoutExpired:
        pass
    finally:
        kill(child)
    return found | {"seconds": round(time.time() - began, 1)}


def one(tool: str, which: list[str], log: Path, executable: str, seconds: float, named: str) -> dict[str, object]:
    """Run one tool; ``status``: ok, failed (it found something), unavailable (it did not run)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    line = command(tool, which, log, executable, named)
    ended = attempt(line, environment(tool), seconds)
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


EXCHANGE_TOOLS = ("memcheck", "racecheck")


def exchanges(context) -> list[dict]:
    """memcheck and racecheck at once on what several blocks exchange, in bfloat16 alone: the rows,
    which are in the journal too."""
    journal, key = context.journal, f"{PART}-exchanges"
    done = journal.latest("sanitizer")
    tools = [tool for tool in EXCHANGE_TOOLS if f"{key}/{tool}" not in done]
    executable = find_tool()
    named = kernel_filter(executable) if executable and tools else "--kernel-name"

    def row_of(tool: str) -> dict:
        log = context.logs / f"{tool}-exchanges.log"
        row = {"tool": tool, "backend": "cuda, exchanges", "seconds": 0.0}
        which = ["cuda", "exchanges"]
        if context.dry or executable is None:
            plain = attempt(driver(*which), dict(os.environ), max(context.left(), 60.0))
            if not plain["finished"]:
                return row | {"status": "failed", "said": plain["said"][-300:]}
            why = "a dry run: not started" if context.dry else "no compute-sanitizer here"
            return row | {"status": "unavailable", "said": why}
        seconds = min(TOOL_SECONDS, context.left())
        return row | one(tool, which, log, executable, seconds, named)

    at_once(context, tools, row_of, f"{key}/{{}}")
    found = journal.latest("sanitizer")
    return [row for name, row in found.items() if name.startswith(key)]
