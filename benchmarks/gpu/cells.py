"""What is timed on the GPU: the grid, the edge shapes, their order and what they may cost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from benchmarks.common.shapes import MODES, Case, spread_order

GRID_T = (128, 512, 1024)
GRID_N = (1, 16, 64, 256)
GRID_H = (64, 128, 256, 512, 768, 1024, 2048)
# The slice of the grid that is timed first, and other ways to run nn.LSTM beside it.
WIDE_T = 512


@dataclass(frozen=True, order=True)
class GpuCell:
    """One row: a case in one precision (see ``precision``) and mode."""

    case: Case
    precision: str
    mode: str

    def key(self, part: str) -> str:
        sizes = f"{self.case.label}-{self.precision}-{self.mode}"
        options = "".join(f"-{k}{getattr(self.case, k)}" for k in "LDP" if getattr(self.case, k))
        return f"{part}/{sizes}{options}"


def grid_cases() -> list[Case]:
    """The whole grid T x N x H with I = H: 84 cases. First those of T = 512, corners first, the
    dearest of them last; then the others, spread likewise.
    """
    whole = [Case(T, N, H, H) for T, N, H in product(GRID_T, GRID_N, GRID_H)]
    order = []
    for first in (True, False):
        dearest, *rest = spread_order([case for case in whole if (case.T == WIDE_T) is first])
        order += [*rest, dearest]
    return order


def edge_cases() -> list[Case]:
    """Where libraries change their algorithm or lose it: odd sizes, options, a single step."""
    odd_H = [Case(512, 64, H, H) for H in (96, 129, 160, 200, 650)]
    odd_N = [Case(512, N, 256, 256) for N in (7, 33, 129)]
    options = [
        Case(128, 128, 256, 256, variant="resets"),
        Case(512, 64, 256, 256, variant="packed"),
        Case(512, 64, 256, 256, variant="lengths"),
        Case(512, 64, 512, 512, P=256, variant="proj"),
        Case(512, 16, 256, 256, L=3, variant="layers3"),
        Case(1024, 16, 256, 256, L=4, variant="layers4"),
        Case(512, 16, 256, 256, D=2, variant="bidirectional"),
        Case(512, 64, 256, 256, variant="autocast"),
        Case(1, 1, 256, 256),
    ]
    return [*options, *odd_N, *odd_H]


def cells_of(part: str, share: tuple[int, int] = (1, 1), most: int | None = None) -> list[GpuCell]:
    """The cells of a part in their order; both modes of a case stand together.

    Args:
        part: ``bench bf16``, ``bench fp16``, ``bench fp32``, ``bench tf32`` or ``edges``.
        share: (k, n): the k-th of n parts of equal size that together have every case.
        most: no more cells than this.
    """
    if part == "edges":
        pairs = [
            (case, precision)
            for precision in ("bf16", "fp32", "fp16", "tf32")
            for case in edge_cases()
            # Autocast is float32 outside and bfloat16 within: one precision says it all.
            if case.variant != "autocast" or precision == "bf16"
        ]
    else:
        precision = part.removeprefix("bench ")
        pairs = [(case, precision) for case in grid_cases()]
    k, n = share
    cells = [GpuCell(case, precision, mode) for case, precision in pairs[k - 1 :: n] for mode in MODES]
    return cells[:most]


# A rough GPU of 2022, for the estimate of what a cell costs before anything was measured: seconds a
# step that a launch-bound implementation takes, and the rate it reaches in wide layers.
_STEP_SECONDS = 10e-6
_RATES = {"bf16": 2e14, "fp16": 2e14, "tf32": 1e14, "fp32": 2e13}
_SETUP_SECONDS = 0.6
# Calls of one contender beside the measured ones: check, warm-up, memory, capture, replay.
_CALLS = 10
# A call that takes longer than this is measured as often as must be, and not as a graph: what the
# launches cost no longer shows.
LONG_CALL_SECONDS = 0.25
LONG_CALLS = 6


def expected_call_seconds(cell: GpuCell) -> float:
    """Nominal time of one call: enough to choose what still fits, never a measurement."""
    steps = cell.case.T * cell.case.L * (3 if cell.mode == "train" else 1)
    return steps * _STEP_SECONDS + cell.case.flops(cell.mode) / _RATES[cell.precision]


def expected_seconds(cell: GpuCell, contenders: int, measured: float) -> float:
    """Nominal time of a whole cell, ``measured`` seconds of it in the measured calls."""
    call = expected_call_seconds(cell)
    if call > LONG_CALL_SECONDS:
        return _SETUP_SECONDS + LONG_CALLS * contenders * call
    return _SETUP_SECONDS + _CALLS * contenders * call + measured


def parse_share(text: str) -> tuple[int, int]:
    """(k, n) from ``k/n``; ValueError says what was expected."""
    parts = text.split("/")
    if len(parts) != 2 or not all(p.isdecimal() for p in parts):
        raise ValueError(f"slice: got {text!r}, expected k/n such as 1/2")
    k, n = map(int, parts)
    if not 1 <= k <= n:
        raise ValueError(f"slice: got {text!r}, expected k from 1 to n")
    return k, n
