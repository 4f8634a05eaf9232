"""The floor: the least time that a cell can take on this machine, from rates measured in the same
run.

    floor = max(flops / peak, bytes / bandwidth)

``flops``: `shapes.Case.flops`, the matrix products only. ``peak``: the cores' highest rate at that
thread count, measured before and after the cells (rates.py): float32 multiply-adds a second; for
bfloat16 the higher of these and of bfloat16 dot products. ``bytes``: every step reads W_hh (and
W_hr) once, and once more in backward: T x L x elements x element size x (1 or 2). ``bandwidth``:
reading a buffer of W_hh's size repeatedly, each thread its own part, so that it is in the same
cache as the weights would be.

Without a C++ compiler, the peak is the best rate of a 1024 x 1024 x 1024 product by torch.mm and
the bandwidth that of torch.sum, which the report says: cells may then exceed 100 %.

A kernel may be faster than the floor, if it keeps weights in a shorter format or in registers; and
a float32 product of bfloat16 parts on AMX may exceed the rate of float32 multiply-adds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product

import torch

from benchmarks.common.shapes import Case, Cell
from benchmarks.common.timing import torch_threads
from benchmarks.cpu import rates

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

    It sums rows that are all the same ``size / threads`` bytes of memory, so each thread reads its
    part repeatedly.
    """
    with torch_threads(threads), torch.no_grad():
        share = max(64, size // threads // 4)
        rows = max(2, PASS_BYTES // (share * 4 * threads)) * threads
        view = torch.ones(share).expand(rows, share)
        out = torch.empty(rows)
        return rows * share * 4 / best_seconds(lambda: torch.sum(view, 1, out=out), seconds)


def streamed_bytes(case: Case, dtype: str, mode: str) -> int:
    """Bytes of recurrent weights that the steps read: forward once a step, backward once more."""
    element = getattr(torch, dtype).itemsize
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
    """The rates of this run: peaks and caches by `measure_peaks`, bandwidths when first asked for.

    ``peaks``: flops per second by (dtype, instruction set, thread count). ``bandwidths``: bytes per
    second by (bytes, thread count); ``caches``: bytes, and bytes per second, by (name, thread
    count). ``unprobed``: why torch's operations were measured instead of the probe, or "".
    """

    peaks: dict[tuple[str, str, int], float] = field(default_factory=dict)
    bandwidths: dict[tuple[int, int], float] = field(default_factory=dict)
    caches: dict[tuple[str, int], tuple[int, float]] = field(default_factory=dict)
    unprobed: str = ""

    def measure_peaks(self, dtypes: Iterable[str], threads: Iterable[int]) -> None:
        """Measure the products at every thread count, and the caches; a rate already there is only
        raised.
        """
        threads = list(threads)
        try:
            lines = [] if self.unprobed else rates.peaks(threads)
            for line in lines:
                self.raise_peak((line["what"], line["with"], line["threads"]), line["per_second"])
            for line in [] if self.caches or self.unprobed else rates.caches(threads):
                key = (line["with"], line["threads"])
                self.caches[key] = (line["bytes"], line["per_second"])
        except rates.Unavailable as error:
            if not self.peaks:
                self.unprobed = str(error)
        if self.unprobed:
            for dtype, count in product({"float32", *dtypes} - {"int8"}, threads):
                self.raise_peak((dtype, "torch.mm", count), measure_peak(dtype, count))

    def raise_peak(self, key: tuple[str, str, int], rate: float) -> None:
        self.peaks[key] = max(rate, self.peaks.get(key, 0.0))

    def peak(self, dtype: str, threads: int) -> float:
        """Flops per second. A short dtype counts at least as float32, which it can be widened to at
        little cost. Of int8 nothing is measured: then the floor is that of the bytes alone.
        """
        if dtype == "int8":
            return float("inf")
        kinds = (dtype, "float32")
        return max(rate for (kind, _, count), rate in self.peaks.items() if kind in kinds and count == threads)

    def bandwidth(self, size: int, threads: int) -> float:
        key = (size, threads)
        if key not in self.bandwidths:
            try:
                if self.unprobed:
                    raise rates.Unavailable(self.unprobed)
                self.bandwidths[key] = rates.buffers([size], [threads])[0]["per_second"]
            except rates.Unavailable:
                self.bandwidths[key] = measure_bandwidth(*key)
        return self.bandwidths[key]

    def floor(self, cell: Cell) -> tuple[float, str]:
        """See `floor_seconds`."""
        per_step = streamed_bytes(cell.case, cell.dtype, "infer") // (cell.case.T * cell.case.L)
        return floor_seconds(cell, self.peak(cell.dtype, cell.threads), self.bandwidth(per_step, cell.threads))

    def as_dict(self) -> dict[str, object]:
        """For the results file: rates in GF/s and GB/s."""
        return {
            "unprobed": self.unprobed,
            "peaks": [
                {"dtype": dtype, "with": isa, "threads": threads, "gflops": rate / 1e9}
                for (dtype, isa, threads), rate in sorted(self.peaks.items())
            ],
            "caches": [
                {"cache": name, "threads": threads, "bytes": size, "gbytes_per_s": rate / 1e9}
                for (name, threads), (size, rate) in sorted(self.caches.items())
            ],
            "read_gbytes": [
                {"bytes": size, "threads": threads, "gbytes_per_s": rate / 1e9}
                for (size, threads), rate in sorted(self.bandwidths.items())
            ],
        }

    def disturbed(self) -> list[str]:
        """Warnings: if the peak of several threads is hardly above one thread's, other processes
        use the cores.
        """
        lines = []
        counts = sorted({threads for _, _, threads in self.peaks})
        for threads in counts:
            rate, alone = self.peak("float32", threads), self.peak("float32", counts[0])
            if counts[0] == 1 < threads and rate < 1.2 * alone:
                lines.append(
                    f"float32 products reach {rate / 1e9:.0f} GF/s with {threads} threads "
                    f"and {alone / 1e9:.0f} with one: "
                    "the cores are in use by something else, and the times are not worth keeping"
                )
        return lines
