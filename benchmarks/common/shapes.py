"""The benchmarked cases: shapes, variants, their flops, and the choice of those that fit a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

CORE_T = (64, 128, 512)
CORE_N = (1, 16, 64, 256)
CORE_H = (64, 128, 256, 512, 1024)

DTYPES = ("float32", "bfloat16", "float16", "int8")  # int8: of the weights, for inference
MODES = ("infer", "train")

# The share of (t, n) positions that a packed batch keeps: lengths are uniform from T/4 to T.
PACKED_SHARE = 5 / 8
RESET_PROBABILITY = 0.03


@dataclass(frozen=True, order=True)
class Case:
    """One LSTM call: T steps, N rows, I inputs, H units, L layers, D directions, P projected units
    (0: none).
    """

    T: int
    N: int
    I: int
    H: int
    L: int = 1
    D: int = 1
    P: int = 0
    variant: str = "plain"

    @property
    def output_size(self) -> int:
        """Outputs of one direction: P, or H without a projection."""
        return self.P or self.H

    @property
    def label(self) -> str:
        text = f"T{self.T}-N{self.N}-H{self.H}"
        if self.I != self.H:
            text = f"T{self.T}-N{self.N}-I{self.I}-H{self.H}"
        return text if self.variant == "plain" else f"{text}-{self.variant}"

    def weight_hh_elements(self) -> int:
        """Elements of the recurrent matrices that one step of one layer reads: D x (4H x P, and P x
        H if projected).
        """
        return self.D * (4 * self.H * self.output_size + self.P * self.H)

    def rows(self) -> float:
        """Steps x rows with data: T·N without the padding of a packed batch."""
        return self.T * self.N * (PACKED_SHARE if self.variant in ("packed", "lengths") else 1.0)

    def flops(self, mode: str) -> float:
        """Flops of the matrix products, 2 per multiply-add; training is three times inference.

        Forward, per layer and direction: rows x (8·H·(I_l + P) + 2·P·H if projected), with I_0 = I
        and I_l = D·P. Backward has one product for the gradient of each operand, so twice as many.
        """
        total = 0.0
        for layer in range(self.L):
            inputs = self.I if layer == 0 else self.D * self.output_size
            total += self.D * (8 * self.H * (inputs + self.output_size) + 2 * self.P * self.H)
        return total * self.rows() * (3 if mode == "train" else 1)


@dataclass(frozen=True, order=True)
class Cell:
    """One row of the report: a case in one dtype, mode and thread count on one device."""

    case: Case
    dtype: str
    mode: str
    threads: int
    device: str = "cpu"


def core_cases() -> list[Case]:
    """The whole grid T x N x H with I = H, one layer, one direction: 60 cases."""
    return [Case(T, N, H, H) for T, N, H in product(CORE_T, CORE_N, CORE_H)]


def quick_cases() -> list[Case]:
    """A smoke run: one case bound by reading weights, two small, one bound by products."""
    return [
        Case(64, 1, 256, 256),
        Case(64, 16, 64, 64),
        Case(64, 16, 128, 128),
        Case(64, 64, 128, 128),
    ]


VARIANTS = ("bidirectional", "layers3", "proj", "wide", "packed", "lengths", "resets")


def variant_cases(variant: str) -> list[Case]:
    """The short list of one edge variant (see VARIANTS).

    ``wide``: many more inputs than units, so that the input product dominates.
    ``packed``: PackedSequence in and out. ``lengths``: a padded batch with ``lengths=``, against
    pack, nn.LSTM and unpack. ``resets``: ``reset_mask=``, against a Python loop over nn.LSTMCell.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}, expected one of {', '.join(VARIANTS)}")
    if variant == "wide":
        sizes = [(5, 500, 510, 32), (128, 16, 1024, 64), (128, 1, 2048, 128)]
        return [Case(*size, variant=variant) for size in sizes]
    sizes = [(128, 1, 128), (128, 16, 128), (64, 64, 256), (64, 16, 512)]
    cases = [Case(T, N, H, H, variant=variant) for T, N, H in sizes]
    if variant == "bidirectional":
        return [replace(case, D=2) for case in cases]
    if variant == "layers3":
        return [replace(case, L=3) for case in cases]
    if variant == "proj":
        return [replace(case, P=case.H // 2) for case in cases]
    if variant in ("packed", "lengths"):
        return [case for case in cases if case.N > 1] + [Case(128, 64, 128, 128, variant=variant)]
    return cases


def parse_shapes(texts: Iterable[str]) -> list[Case]:
    """Cases from ``T,N,H`` or ``T,N,I,H``; raises ValueError that names the text."""
    cases = []
    for text in texts:
        try:
            sizes = [int(part) for part in text.split(",")]
        except ValueError:
            sizes = []
        if len(sizes) not in (3, 4) or min(sizes, default=0) < 1:
            raise ValueError(f"shapes: got {text!r}, expected T,N,H or T,N,I,H with positive whole numbers")
        T, N, H = sizes[0], sizes[1], sizes[-1]
        cases.append(Case(T, N, sizes[2], H))
    return cases


# Rough times of nn.LSTM on two AVX-512 cores, only used to choose a list of cases.
_NOMINAL_GFLOPS = {"float32": 60.0, "bfloat16": 45.0, "float16": 55.0, "float64": 20.0}
_NOMINAL_GFLOPS["int8"] = 60.0
_NOMINAL_STEP_SECONDS = {"infer": 5e-6, "train": 20e-6}
CALLS_PER_CELL = 14  # two peers, each once for the check, once to warm up and at least five times measured


def expected_seconds(case: Case, dtype: str, mode: str, threads: int) -> float:
    """Nominal time of one call in seconds. With few rows the rate is low: reading weights
    dominates.
    """
    rate = _NOMINAL_GFLOPS[dtype] * 1e9 * case.N / (case.N + 8) * (1.0 if threads == 1 else 1.8)
    return case.flops(mode) / rate + case.T * case.L * case.D * _NOMINAL_STEP_SECONDS[mode]


def expected_cell_seconds(cell: Cell) -> float:
    """Nominal time of a cell at the fewest repetitions, with its share of the float64 reference, in
    seconds.
    """
    case = cell.case
    reference = expected_seconds(case, "float64", cell.mode, 2) / 2
    return CALLS_PER_CELL * expected_seconds(case, cell.dtype, cell.mode, cell.threads) + reference


def spread_order(cases: Sequence[Case]) -> list[Case]:
    """The cases, each the farthest from all before it in (log T, log N, log H): corners first, then
    the inside.

    The first has the most flops. Ties go to the smaller case, so that the order is deterministic.
    """
    left = sorted(cases)
    if not left:
        return []

    def place(case: Case) -> tuple[float, float, float]:
        # H has weight 2, as in the flops; T has weight 1/2, since a longer sequence repeats the
        # same work.
        return (math.log2(case.T) / 2, math.log2(case.N), 2 * math.log2(case.H))

    order = [max(left, key=lambda case: case.flops("infer"))]
    left.remove(order[0])
    while left:
        far = max(left, key=lambda case: min(math.dist(place(case), place(other)) for other in order))
        left.remove(far)
        order.append(far)
    return order


def trim(
    cases: Sequence[Case],
    dtypes: Sequence[str],
    modes: Sequence[str],
    threads: Sequence[int],
    seconds: float,
    most: int = 12,
) -> list[Cell]:
    """Cells whose expected time fits into ``seconds``, shared equally among (dtype, mode, threads),
    ``most`` in each.

    A configuration omits cases that alone would take more than 30 % of its share, and then takes,
    in the order of `spread_order`, each case that still fits. So cheap configurations have larger
    cases than expensive ones.
    """
    configs = _configurations(dtypes, modes, threads)
    chosen = []
    for config in configs:
        share = left = seconds / len(configs)
        costs = {case: expected_cell_seconds(Cell(case, *config)) for case in cases}
        taken = []
        for case in spread_order([case for case in cases if costs[case] <= 0.3 * share]):
            if costs[case] <= left and len(taken) < most:
                taken.append(Cell(case, *config))
                left -= costs[case]
        chosen += taken
    return chosen


def shorter(cells: Sequence[Cell], seconds: float | None) -> list[Cell]:
    """The cells of which one call is expected to take at most ``seconds``; None: all."""

    def expected(cell):
        return expected_seconds(cell.case, cell.dtype, cell.mode, cell.threads)

    return [cell for cell in cells if seconds is None or expected(cell) <= seconds]


def all_cells(cases: Sequence[Case], dtypes: Sequence[str], modes: Sequence[str], threads: Sequence[int]) -> list[Cell]:
    """Every case in every configuration."""
    found = product(cases, _configurations(dtypes, modes, threads))
    return [Cell(case, *config) for case, config in found]


def _configurations(dtypes: Sequence[str], modes: Sequence[str], threads: Sequence[int]) -> list[tuple[str, str, int]]:
    """All but training with int8 weights, which have no gradients."""
    every = product(dtypes, modes, threads)
    return [each for each in every if each[:2] != ("int8", "train")]
