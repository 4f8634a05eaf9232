"""What csrc/cuda/costs.h assumes of the device, measured: benchmarks/gpu/probe, compiled and run.

The choice between the families of CUDA kernels follows those numbers; where a measured one differs,
costs.h is to be changed.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common.machine import ROOT
from benchmarks.gpu.build import toolkit

PART = "probe"
SOURCES = ROOT / "benchmarks" / "gpu" / "probe"
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
    """The program, for this GPU."""
    home = toolkit().get("CUDA_HOME") or os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (f"{home}/bin/nvcc" if home else None)
    if nvcc is None:
        raise RuntimeError("no nvcc on PATH, nor in CUDA_HOME")
    target = ROOT / "build" / "gpu" / "probe"
    target.parent.mkdir(parents=True, exist_ok=True)
    architecture = f"arch=compute_{context.architecture},code=sm_{context.architecture}"
    command = [nvcc, "-std=c++17", "-O3", f"-gencode={architecture}", f"-I{ROOT / 'csrc'}"]
    command += ["-o", str(target), *map(str, sorted(SOURCES.glob("*.cu")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return target


def simulated() -> Path:
    """The program as tests/simt runs it on the CPU; its numbers say nothing."""
    sys.path.insert(0, str(ROOT / "tests" / "simt"))
    build = importlib.import_module("build")
    sources = [SOURCES / f"{name}.cu" for name in DRY_SOURCES]
    return build.executable("probe", sources, ["-DFASTLSTM_SIMT"])
