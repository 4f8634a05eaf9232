"""Builds the compiled library for the GPU of this machine alone, which saves most of the time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common.machine import ROOT

PART = "build"


def run(context) -> str:
    """Build, incrementally; gives the part's state (see `plan`)."""
    line = [sys.executable, "setup.py", "build_ext", "--inplace"]
    env = {"FASTLSTM_CUDA_ARCHS": context.architecture, "FASTLSTM_CUDA": "1", **toolkit()}
    context.say(" ".join([*(f"{k}={v}" for k, v in env.items()), *line]))
    if context.dry:
        context.say("dry run: not built")
        return "done"
    began = time.time()
    with locked():
        try:
            done = subprocess.run(
                line,
                cwd=ROOT,
                env=os.environ | env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=max(context.left(), 1.0),
            )
            text, status = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            text, status = (error.stdout or b"").decode(errors="replace"), None
    context.logs.mkdir(parents=True, exist_ok=True)
    (context.logs / "build.log").write_text(text)
    found = {"seconds": round(time.time() - began, 1), "status": status, **ptxas(text)}
    context.journal.append("build", PART, architecture=context.architecture, **found)
    if status == 0:
        context.say(f"built in {found['seconds']:.0f} s: {found['kernels']} kernels compiled")
        return "done"
    context.say(text[-3000:])
    return "failed" if status is not None else "cut"


def toolkit() -> dict[str, str]:
    """CUDA_HOME, for an nvcc that is in its usual place and not on PATH."""
    usual = Path("/usr/local/cuda")
    if shutil.which("nvcc") or os.environ.get("CUDA_HOME") or not (usual / "bin/nvcc").exists():
        return {}
    return {"CUDA_HOME": str(usual)}


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """The lock that ./run takes for a build, where the system has such locks."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "run.lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield


def ptxas(text: str) -> dict[str, int]:
    """What ptxas said of the kernels it compiled: how many, their most registers, spilled bytes."""
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill stores", text)]
    return {
        "kernels": len(registers),
        "most_registers": max(registers, default=0),
        "spilled_bytes": sum(spills),
    }
