"""Large products by themselves: the kernels' own, torch.mm and oneDNN's linear, interleaved.

A product is M x N of depth K. Its order is the memory layout of both factors, as in BLAS: N for
rows, T for columns. A layer's gates are NT (x and a weight), its gradient of x is NN, those of the
weights are TN. The kernels' own product is measured twice: with the right factor packed at every
call, as for gradients of weights, and packed beforehand, as a layer's weights are for all steps.

Before a product is timed, every element is compared with float64. It may be off by the rounding
errors of a sum of K float32 terms in any order, and one rounding to the dtype:

    |got - exact| <= K * 2^-24 * (|left| @ |right|) + u * |exact|
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from benchmarks.common.check import WrongResult
from benchmarks.common.timing import Task, interleave, spread, torch_threads
from benchmarks.cpu import floor

SHAPES = (
    (2048, 2048, 512),
    (3600, 1536, 384),
    (48, 1536, 384),
    (16, 2048, 512),
    (4800, 768, 192),
    (64, 4096, 1024),
)
ORDERS = ("NT", "NN", "TN")
# Targets of the kernels' own product with a packed factor, as shares of the machine's peak.
TARGETS = {(2048, 2048, 512): 0.92, (48, 1536, 384): 0.85}
OWN, PACKED, TORCH, ONEDNN = "FastLSTM", "packed", "torch.mm", "oneDNN linear"
# The number of bfloat16 parts of each factor, where the kernels' own product is made of parts.
OWN_PARTS = {"float32": (3, 3), "bfloat16": (1, 1)}


@dataclass(frozen=True)
class Product:
    """One row of the report."""

    shape: tuple[int, int, int]  # M, N, K
    order: str
    dtype: str
    threads: int

    @property
    def flops(self) -> int:
        M, N, K = self.shape
        return 2 * M * N * K

    def factors(self) -> tuple[Tensor, Tensor]:
        """(M, K) and (K, N) of the dtype, from N(0, 1), with the memory layout of the order."""
        M, N, K = self.shape
        generator = torch.Generator().manual_seed(0)
        left = torch.randn(M, K, generator=generator).to(getattr(torch, self.dtype))
        right = torch.randn(K, N, generator=generator).to(getattr(torch, self.dtype))
        return tuple(
            factor.t().contiguous().t() if letter == "T" else factor
            for letter, factor in zip(self.order, (left, right), strict=True)
        )

    def fields(self) -> dict[str, object]:
        row = dict(zip("MNK", self.shape, strict=True))
        return row | {"order": self.order, "dtype": self.dtype, "threads": self.threads}


def products(dtypes: Sequence[str], threads: Sequence[int]) -> list[Product]:
    found = product(dtypes, threads, SHAPES, ORDERS)
    return [Product(shape, order, dtype, count) for dtype, count, shape, order in found]


def own(left: Tensor, right: Tensor, packed: bool = False) -> Callable[[], Tensor]:
    from fastlstm.backends import native

    reason = native.load()
    if reason:
        raise RuntimeError(reason)
    dtype = str(left.dtype).removeprefix("torch.")
    if dtype not in OWN_PARTS:
        raise RuntimeError(f"the op takes {', '.join(OWN_PARTS)}")
    left_parts, right_parts = OWN_PARTS[dtype]
    op = torch.ops.fastlstm.cpu_product
    beforehand = torch.ops.fastlstm.cpu_packed(right, right_parts) if packed else None
    return lambda: op(left, right, None, left_parts, right_parts, beforehand)


def onednn(left: Tensor, right: Tensor) -> Callable[[], Tensor]:
    weight = right.t()
    return lambda: torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")


ENGINES: dict[str, Callable[[Tensor, Tensor], Callable[[], Tensor]]] = {
    OWN: own,
    PACKED: lambda left, right: own(left, right, packed=True),
    TORCH: lambda left, right: lambda: torch.mm(left, right),
    ONEDNN: onednn,
}


def measure(each: Product, seconds: float) -> dict[str, object]:
    """``times`` and ``gflops`` (at the median) by engine; ``notes``: why an engine is not there."""
    left, right = each.factors()
    tasks, notes, got = {}, {}, {}
    for name, build in ENGINES.items():
        try:
            call = build(left, right)
            got[name] = call()
            tasks[name] = Task(call)
        except (RuntimeError, AttributeError) as error:
            notes[name] = (str(error).splitlines() or [type(error).__name__])[0][:120]
    judge(got, left, right)
    times = interleave(tasks, seconds)
    spreads = {name: spread(taken) for name, taken in times.items()}
    rates = {name: each.flops / taken["median_s"] / 1e9 for name, taken in spreads.items()}
    return {"times": spreads, "gflops": rates, "notes": notes}


def judge(got: dict[str, Tensor], left: Tensor, right: Tensor) -> None:
    """Raises `WrongResult` for the first engine that is outside the budget."""
    wide, K = (left.double(), right.double()), left.shape[1]
    exact, magnitude = wide[0] @ wide[1], wide[0].abs() @ wide[1].abs()
    roundoff = torch.finfo(left.dtype).eps / 2
    budget = K * 2.0**-24 * magnitude + roundoff * exact.abs()
    for name, result in got.items():
        used = float(((result.double() - exact).abs() / budget).max())
        # Written so that a NaN fails.
        if not used <= 1:
            raise WrongResult(f"{name}: an element is off by {used:.3g} times its budget")


def run(found: Sequence[Product], seconds: float) -> Iterator[dict[str, object]]:
    """A row per product; a wrong result makes one that failed."""
    for each in found:
        row = each.fields()
        try:
            with torch_threads(each.threads), torch.no_grad():
                yield row | {"status": "ok", "error": None, **measure(each, seconds)}
        except Exception as error:
            yield row | {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def add_peaks(rows: Sequence[dict[str, object]], machine: floor.Machine) -> None:
    """Put ``peak_gflops``, ``shares`` (of it, by engine) and ``target`` into every ``ok`` row."""
    for row in rows:
        if row["status"] == "ok":
            peak = machine.peak(row["dtype"], row["threads"]) / 1e9
            row["peak_gflops"] = peak
            row["shares"] = {name: rate / peak for name, rate in row["gflops"].items()}
            target = TARGETS.get((row["M"], row["N"], row["K"]))
            row["target"] = target if PACKED in row["shares"] else None


def label(row: dict) -> str:
    return f"{row['M']},{row['N']},{row['K']} {row['order']} {row['dtype']} x{row['threads']}"


def outcome(row: dict) -> str:
    if row["status"] == "failed":
        return row["error"]
    return ", ".join(f"{name} {rate:.0f} GF/s" for name, rate in row["gflops"].items())
