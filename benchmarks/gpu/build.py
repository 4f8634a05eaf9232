"""Builds the compiled library for the GPU of this machine alone, which saves most of the time; or,
on a machine without a GPU, for another's. A library that was built so is used as it is while its
sources are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common.machine import ROOT
from benchmarks.gpu.journal import digest

PART = "build"
LINE = [sys.executable, "setup.py", "build_ext", "--inplace"]
LIBRARY = ROOT / "fastlstm" / "_C.abi3.so"
STAMP = ROOT / "build" / "gpu" / "library.json"
SOURCES = ("csrc/**/*", "setup.py")
FAILED, OK = 1, 0


def run(context) -> str:
    """Build, incrementally; gives the part's state (see `plan`)."""
    env = environment(context.architecture)
    context.say(" ".join([*(f"{k}={v}" for k, v in env.items()), *LINE]))
    if context.dry:
        context.say("dry run: not built")
        return "done"
    if prebuilt(context.architecture):
        context.say("built from these sources before: used as it is")
        return "done"
    began = time.time()
    with locked():
        try:
            done = subprocess.run(
                LINE,
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
        note(context.architecture)
        context.say(f"built in {found['seconds']:.0f} s: {found['kernels']} kernels compiled")
        return "done"
    context.say(text[-3000:])
    return "failed" if status is not None else "cut"


def pack(architecture: str) -> int:
    """Build for a GPU elsewhere, such as "90a"; gives the exit status."""
    with locked():
        # Its processor is unknown here, too.
        env = {"FASTLSTM_AVX512": "1"} | environment(architecture)
        done = subprocess.run(LINE, cwd=ROOT, env=os.environ | env)
    if done.returncode != 0:
        return FAILED
    note(architecture)
    print(f"Take along {LIBRARY} and {STAMP}:")
    print(f"./run gpu on an sm_{architecture} then builds nothing.")
    return OK


def environment(architecture: str) -> dict[str, str]:
    """What setup.py is told. Hangs trap, so that one costs a test its process and no more."""
    told = {"FASTLSTM_CUDA_ARCHS": architecture, "FASTLSTM_CUDA": "1", "FASTLSTM_TRAP_HANGS": "1"}
    return told | toolkit()


def stamp(architecture: str) -> dict[str, str]:
    """What a library is known by that was built for the architecture and is there now."""
    library = hashlib.sha256(LIBRARY.read_bytes()).hexdigest()
    return {"sources": digest(SOURCES), "architecture": architecture, "library": library}


def note(architecture: str) -> None:
    """Write down that the library is built."""
    STAMP.parent.mkdir(parents=True, exist_ok=True)
    STAMP.write_text(json.dumps(stamp(architecture)))


def prebuilt(architecture: str) -> bool:
    """Whether the library is one that `note` wrote down for this, from the sources as they are."""
    try:
        return json.loads(STAMP.read_text()) == stamp(architecture)
    except (OSError, ValueError):
        return False


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
