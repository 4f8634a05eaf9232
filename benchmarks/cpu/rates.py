"""The peak rates of this machine's cores, measured by a small program: rates.cpp, compiled once to
build/bench.

`peaks`: float32 multiply-adds and bfloat16 dot products, a line for each instruction set that the
CPU has and the system permits. `caches`: reading half of each cache. `buffers`: reading buffers of
given sizes. A line is a dict with ``what``, ``with``, ``threads``, ``bytes`` and ``per_second``
(flops or bytes).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.common.machine import ROOT

SOURCE = Path(__file__).with_name("rates.cpp")
INCLUDE = ROOT / "csrc"
HEADER = INCLUDE / "cpu" / "isa" / "processor.h"
BUILD = ROOT / "build" / "bench"
FLAGS = ["-std=c++17", "-O3", "-pthread"]
COMPILE_SECONDS, RUN_SECONDS = 120.0, 120.0
# In order: FASTLSTM_CPU_ISA excludes those after it.
ISAS = ("generic", "avx2", "avx512", "avx512bf16", "amx")


class Unavailable(RuntimeError):
    """The program cannot be built or run; the message has the reason."""


def compiler() -> str:
    """The C++ compiler, as setup.py finds it."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise Unavailable(f"no C++ compiler: {' and '.join(names)} not on PATH")


@functools.cache
def program() -> Path:
    """The compiled program, rebuilt if its source, flags or compiler have changed."""
    cxx = compiler()
    try:
        version = subprocess.run([cxx, "--version"], capture_output=True, text=True, timeout=30)
        parts = [SOURCE.read_text(), HEADER.read_text(), *FLAGS, cxx, version.stdout]
        target = BUILD / f"rates-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"
        if target.exists():
            return target
        BUILD.mkdir(parents=True, exist_ok=True)
        # First to a temporary name, since two processes may build it at the same time.
        made = target.with_name(f"{target.name}.{os.getpid()}")
        command = [cxx, *FLAGS, f"-I{INCLUDE}", str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [""]
            raise Unavailable(f"{cxx} does not compile {SOURCE.name}: {lines[0][:200]}")
        made.replace(target)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{SOURCE.name} was not compiled: {error}") from error
    return target


def measured(*arguments: object) -> list[dict[str, object]]:
    """The lines that the program prints for these arguments."""
    command = [str(program()), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{SOURCE.name} did not run: {error}") from error
    if done.returncode:
        said = done.stderr.strip() or f"status {done.returncode}"
        raise Unavailable(f"{SOURCE.name} did not run: {said}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def peaks(threads: Iterable[int], seconds: float = 0.15) -> list[dict[str, object]]:
    """Products at each thread count, by the instruction sets that FASTLSTM_CPU_ISA allows."""
    limit = os.environ.get("FASTLSTM_CPU_ISA", "")
    allowed = ISAS[: ISAS.index(limit) + 1] if limit in ISAS else ISAS
    return [line for line in measured("peaks", seconds, *threads) if line["with"] in allowed]


def caches(threads: Iterable[int], seconds: float = 0.05) -> list[dict[str, object]]:
    """Reading half of each cache of known size, at each thread count."""
    return measured("reads", seconds, *threads)


def buffers(sizes: Sequence[int], threads: Iterable[int], seconds: float = 0.05) -> list[dict[str, object]]:
    """Reading buffers of these sizes in bytes over and over, each thread its own share."""
    return measured("reads", seconds, *threads, "--", *sizes)
