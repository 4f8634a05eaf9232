"""Description of the machine for results files: CPU, torch, load, commit."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_fp16",
    "asimd",
    "sve",
    "bf16",
)


def all_threads() -> int:
    """The thread count of ``all``: torch's default."""
    return torch.get_num_threads()


def cpu_info() -> tuple[str, list[str]]:
    """The model name, and those of `FLAGS` that the CPU has (none without /proc/cpuinfo)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), []
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    return (model.group(1).strip() if model else platform.machine()), [flag for flag in FLAGS if flag in present]


# Environment variables that limit libraries to fewer instructions or threads than the CPU has.
LIMITS = (
    "FASTLSTM_CPU_ISA",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
)


def limits() -> dict[str, str]:
    """Those of `LIMITS` that are set, with their values."""
    return {name: os.environ[name] for name in LIMITS if name in os.environ}


def commit() -> str:
    """Short hash of the checkout, ``dirty`` if a tracked file differs from it, ``unknown`` without
    git.
    """
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return "dirty" if changed else git("rev-parse", "--short", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def slug(text: str) -> str:
    """Letters and digits of ``text`` in lower case, joined by hyphens, for a file name."""
    plain = re.sub(r"\((?:r|tm)\)", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


def stem(described: dict, save: bool) -> str:
    """The beginning of a results file's name: that of CPU and commit, or ``latest``."""
    return f"{slug(described['cpu'])}-{described['commit']}" if save else "latest"


def load_average() -> float | None:
    """Runnable processes, averaged over the last minute; None where that is not known."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def describe() -> dict[str, object]:
    """The ``machine`` block of a results file."""
    model, flags = cpu_info()
    return {
        "cpu": model,
        "flags": flags,
        "limits": limits(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": all_threads(),
        "load_average": load_average(),
        "commit": commit(),
        "fastlstm": fastlstm_report(),
    }


def fastlstm_report() -> dict[str, object]:
    """The report of ``python -m fastlstm --json``, or ``{"error": why not}``."""
    command = [sys.executable, "-m", "fastlstm", "--json"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        report = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        lines = done.stderr.strip().splitlines() if isinstance(error, ValueError) else []
        return {"error": lines[-1] if lines else f"{type(error).__name__}: {error}"}
    return report if isinstance(report, dict) else {"report": report}


def available_memory() -> float:
    """Bytes that are available without swapping; 8 GB where the system has no such number."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 8e9
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024.0 if found else 8e9
