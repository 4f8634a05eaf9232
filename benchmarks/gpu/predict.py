"""What the CUDA kernels predict of a step, in their own words, beside the floor; no GPU is needed.

csrc/cuda is compiled by tests/simt, and asked what it would choose for a call on an H200, and how
many clocks a step then takes by the constants of costs.h. benchmarks/log.md has these tables.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.common.machine import ROOT
from benchmarks.common.timing import geometric_mean
from benchmarks.gpu.floor import (
    CLOCKS_PER_US,
    MULTIPROCESSORS,
    MULTIPROCESSORS_TOGETHER,
    step_us,
)

H200 = {
    "multiprocessors": MULTIPROCESSORS,
    "multiprocessors_together": MULTIPROCESSORS_TOGETHER,
}
KINDS = {"bf16": "bfloat16", "tf32": "tf32", "fp32": "float32"}
STEPS = 1024
ROWS = (1, 16, 64, 256)
UNITS = (64, 128, 256, 512, 768, 1024, 1536, 2048)


def simulated():
    """The kernels on a simulated device, tests/simt/family.py; it takes minutes to compile.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    sys.path.insert(0, str(ROOT / "tests" / "simt"))
    family = importlib.import_module("family")
    if (reason := family.load()) is not None:
        raise RuntimeError(f"the kernels cannot be asked: {reason}")
    return family


def step(family, precision: str, N: int, H: int, backward: bool) -> tuple[float, str, float]:
    """us of a step without a projection, the family of kernels, and the floor in us."""
    with family.simulated(**H200):
        choice = family.choose(KINDS[precision], STEPS, N, H, backward=backward)
    return choice.step / CLOCKS_PER_US, choice.family, step_us(precision, N, H, H, backward)[0]


def table(family, precision: str) -> list[str]:
    """Lines of Markdown: us a step forward / backward by H and N, with how many times the floor."""
    lines = [f"| {precision} H | " + " | ".join(f"N{N}" for N in ROWS) + " |"]
    lines.append("|---" * (len(ROWS) + 1) + "|")
    ratios = []
    for H in UNITS:
        cells = []
        for N in ROWS:
            both = [step(family, precision, N, H, backward) for backward in (False, True)]
            ratios += [us / floor for us, _, floor in both]
            cells.append(" / ".join(f"{us:.2f}{name[0]} ({us / low:.1f})" for us, name, low in both))
        lines.append(f"| {H} | " + " | ".join(cells) + " |")
    near = sum(ratio <= 2 for ratio in ratios)
    lines += [
        "",
        f"Within twice the floor: {near} of {len(ratios)} cells; geometric mean {geometric_mean(ratios):.2f}.",
        "",
    ]
    return lines


def text() -> str:
    """All tables."""
    family = simulated()
    return "\n".join(line for precision in KINDS for line in table(family, precision))
