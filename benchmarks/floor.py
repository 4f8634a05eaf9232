"""The floor: the least time that this machine can take for a cell, from two rates measured in the
same run.

    floor = max(flops / peak, bytes / bandwidth)

``flops``: `shapes.Case.flops`, the matrix products alone. ``peak``: the best sustained torch.mm
rate in this run at that dtype or in float32, at that thread count, a 1024 x 1024 x 1024 product,
measured before the cells and after. ``bytes``: every step reads W_hh (and W_hr) once, and once more
in backward: T x L x elements x element size x (1 or 2). ``bandwidth``: reading a buffer of W_hh's
size over and over, each thread its own share of it, so that it lies in the cache where the weights
would lie.

The floor is a yardstick and no law: a kernel may beat it by keeping weights in a shorter format or
in registers, by computing float32 from bfloat16 products on a matrix unit, or because torch.mm is
not the best that the core can do.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product

import torch

from benchmarks.shapes import Case, Cell
from benchmarks.timing import torch_threads

MM_SIZE = 1024
PASS_BYTES = 64 * 2**20


def best_seconds(call, seconds: float, least: int = 3) -> float:
    """The shortest of the times of ``call`` within ``seconds``, after one call to warm up."""
    call()
    best = float("inf")
    stop = time.perf_counter() + seconds
    done = 0
    while done < least or time.perf_counter() < stop:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        done += 1
    return best


def measure_peak(dtype: str, threads: int, seconds: float = 0.3) -> float:
    """Best sustained torch.mm rate, flops per second: 2 · 1024³ over the shortest time."""
    with torch_threads(threads), torch.no_grad():
        a, b = (torch.randn(MM_SIZE, MM_SIZE).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * MM_SIZE**3 / best_seconds(lambda: torch.mm(a, b, out=out), seconds)


def measure_bandwidth(size: int, threads: int, seconds: float = 0.05) -> float:
    """Bytes per second that ``threads`` threads read from a buffer of ``size`` bytes, over and
    over.

    A sum over rows that are all the same ``size / threads`` bytes of memory: each thread walks the
    share again and again.
    """
    with torch_threads(threads), torch.no_grad():
        share = max(64, size // threads // 4)
        rows = max(2, PASS_BYTES // (share * 4 * threads)) * threads
        view = torch.ones(share).expand(rows, share)
        out = torch.empty(rows)
        return rows * share * 4 / best_seconds(lambda: torch.sum(view, 1, out=out), seconds)


def streamed_bytes(case: Case, dtype: str, mode: str) -> int:
    """Bytes of recurrent weights that the steps read: forward once a step, backward once more."""
    element = torch.finfo(getattr(torch, dtype)).bits // 8
    return case.T * case.L * case.weight_hh_elements() * element * (2 if mode == "train" else 1)


def floor_seconds(cell: Cell, peak: float, bandwidth: float) -> tuple[float, str]:
    """max(flops / peak, bytes / bandwidth) in seconds, and which of the two it is: ``"flops"`` or
    ``"bytes"``.
    """
    by_flops = cell.case.flops(cell.mode) / peak
    by_bytes = streamed_bytes(cell.case, cell.dtype, cell.mode) / bandwidth
    return max((by_flops, "flops"), (by_bytes, "bytes"))


@dataclass
class Machine:
    """The rates of this run: peaks by `measure_peaks`, bandwidths when first asked for."""

    peaks: dict[tuple[str, int], float] = field(default_factory=dict)  # (dtype, threads)
    bandwidths: dict[tuple[int, int], float] = field(default_factory=dict)  # (bytes, threads)

    def measure_peaks(self, dtypes: Iterable[str], threads: Iterable[int]) -> None:
        """Measure torch.mm at every dtype and float32, at every thread count; a rate already there
        is only raised.
        """
        for key in product({"float32", *dtypes}, threads):
            self.peaks[key] = max(measure_peak(*key), self.peaks.get(key, 0.0))

    def peak(self, dtype: str, threads: int) -> float:
        """Flops per second. A short dtype counts at least as float32, which it can be widened to at
        little cost.
        """
        return max(self.peaks[dtype, threads], self.peaks["float32", threads])

    def bandwidth(self, size: int, threads: int) -> float:
        key = (size, threads)
        if key not in self.bandwidths:
            self.bandwidths[key] = measure_bandwidth(*key)
        return self.bandwidths[key]

    def floor(self, cell: Cell) -> tuple[float, str]:
        """See `floor_seconds`."""
        per_step = streamed_bytes(cell.case, cell.dtype, "infer") // (cell.case.T * cell.case.L)
        return floor_seconds(
            cell, self.peak(cell.dtype, cell.threads), self.bandwidth(per_step, cell.threads)
        )

    def as_dict(self) -> dict[str, list[dict[str, float | int | str]]]:
        """For the results file: rates in GF/s and GB/s."""
        return {
            "mm_gflops": [
                {"dtype": dtype, "threads": threads, "gflops": rate / 1e9}
                for (dtype, threads), rate in sorted(self.peaks.items())
            ],
            "read_gbytes": [
                {"bytes": size, "threads": threads, "gbytes_per_s": rate / 1e9}
                for (size, threads), rate in sorted(self.bandwidths.items())
            ],
        }

    def disturbed(self) -> list[str]:
        """Warnings: a thread count whose torch.mm is slower than one thread's says that something
        else uses the cores.
        """
        lines = []
        for (dtype, threads), rate in sorted(self.peaks.items()):
            alone = self.peaks.get((dtype, 1))
            if threads > 1 and alone and rate < 1.2 * alone:
                lines.append(
                    f"torch.mm in {dtype} reaches {rate / 1e9:.0f} GF/s with {threads} threads "
                    f"and {alone / 1e9:.0f} with one: "
                    "the cores are in use by something else, and the times are not worth keeping"
                )
        return lines
