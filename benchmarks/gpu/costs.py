"""What csrc/cuda/costs.h assumes of the device, measured: benchmarks/gpu/probe, compiled and run.

The choice between the families of CUDA kernels follows those numbers; where a measured one differs,
costs.h is to be changed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common.machine import ROOT
from benchmarks.gpu.build import FAILED, OK, toolkit
from benchmarks.gpu.journal import digest

PART = "probe"
SOURCES = ROOT / "benchmarks" / "gpu" / "probe"
PROGRAM = ROOT / "build" / "gpu" / "probe"
STAMP = ROOT / "build" / "gpu" / "probe.json"
READ = ("benchmarks/gpu/probe/*", "csrc/**/*")
# Needs no graphs and no streams, which tests/simt has not.
DRY_SOURCES = ("main", "clusters", "grid", "rates")
DRY_ROUNDS = "2"
COMPILE_SECONDS, RUN_SECONDS = 180.0, 60.0


def run(context) -> str:
    """Compile and run the probe; gives the part's state (see `plan`)."""
    try:
        line = [str(simulated())] if context.dry else [str(compiled(context))]
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        context.say(f"the probe was not built: {error}")
        return "skipped" if context.dry else "failed"
    line += [DRY_ROUNDS] if context.dry else []
    seconds = min(RUN_SECONDS, max(context.left(), 1.0))
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=seconds)
        text, said = done.stdout, done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        # A kernel may wait for ever: what was answered before it counts.
        text, said = (error.stdout or b"").decode(), f"no end within {seconds:.0f} s"
    answers = list(read(text.splitlines()))
    for answer in answers:
        key = f"{PART}/{answer['question']}/{answer['detail']}/{answer['unit']}"
        context.journal.append("probe", key, **answer)
    context.say(f"{len(answers)} answers")
    if said:
        context.say(said[:2000])
        context.journal.append("note", PART, text=said[:2000])
        return "failed"
    return "done"


def read(lines: Iterable[str]) -> Iterable[dict]:
    """The answers among what the probe printed; its last line may be cut off."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def compiled(context) -> Path:
    """The program, for this GPU: that which `pack` made, where it is of these sources."""
    if prebuilt(context.architecture):
        PROGRAM.chmod(0o755)  # copying may have lost it
        return PROGRAM
    return compile_for(context.architecture)


def compile_for(architecture: str) -> Path:
    home = toolkit().get("CUDA_HOME") or os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (f"{home}/bin/nvcc" if home else None)
    if nvcc is None:
        raise RuntimeError("no nvcc on PATH, nor in CUDA_HOME")
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, "-std=c++17", "-O3", f"-gencode={target}", f"-I{ROOT / 'csrc'}"]
    command += ["-o", str(PROGRAM), *map(str, sorted(SOURCES.glob("*.cu")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    STAMP.write_text(json.dumps(stamp(architecture)))
    return PROGRAM


def stamp(architecture: str) -> dict[str, str]:
    """What a program is known by that was compiled for the architecture and is there now."""
    program = hashlib.sha256(PROGRAM.read_bytes()).hexdigest()
    return {"sources": digest(READ), "architecture": architecture, "program": program}


def prebuilt(architecture: str) -> bool:
    """Whether the program is one compiled for this, from the sources as they are."""
    try:
        return json.loads(STAMP.read_text()) == stamp(architecture)
    except (OSError, ValueError):
        return False


def pack(architecture: str) -> int:
    """Compile for a GPU elsewhere; gives the exit status."""
    try:
        compile_for(architecture)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"the probe was not built: {error}", file=sys.stderr)
        return FAILED
    print(f"Take along {PROGRAM} and {STAMP}, too.")
    return OK


def simulated() -> Path:
    """The program as tests/simt runs it on the CPU; its numbers say nothing."""
    sys.path.insert(0, str(ROOT / "tests" / "simt"))
    build = importlib.import_module("build")
    sources = [SOURCES / f"{name}.cu" for name in DRY_SOURCES]
    return build.executable("probe", sources, ["-DFASTLSTM_SIMT"])
