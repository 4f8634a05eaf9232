"""The floor: the least time that a GPU like the H100 or H200 needs for a call, by a model.

The steps depend on each other, so the floor is T times a step, and a step is

    t_W + t_pw + t_x

* t_W: the product of h with W_hh, which stays on the chip (registers, then shared memory) where it
  fits and else streams from L2: the largest of arithmetic, shared-memory reads and L2 reads.
* t_pw: the pointwise part of the cell.
* t_x: the exchange of h between the CTAs that share one batch row's W_hh: within a CTA, within a
  cluster by distributed shared memory, or over the whole GPU through L2.

W_hh is spread over 1 CTA, a cluster of 2 to 16, or a grid of 22 to 132; each such group takes a
share of the rows; the best of these counts. To that comes, once for a call, the arithmetic outside
the recurrence: the input product, and in training the gradients of input and weights.

The constants are Hopper's: 132 SMs at 1.8 GHz; published micro-benchmarks give distributed shared
memory 181-213 cycles and 16-21 bytes a clock, an mma.sync every 6.3 clocks per quarter of an SM, 15
clusters of 8 and 7 of 16 resident; 5.5 TB/s from L2; 128 bytes a clock from shared memory; 4 bytes
x 64 Ki registers and 227 KiB shared memory an SM. Exchange latencies are those that other recurrent
kernels report (flags through L2 0.75 us, st.async with mbarrier 0.2 us). It is a yardstick: on
another GPU it is a rough one, and a kernel may beat it by an exchange that is faster than these.
"""

from __future__ import annotations

import math

from benchmarks.common.shapes import Case

MULTIPROCESSORS, CLOCKS_PER_US = 132, 1800.0
# A cluster lies within one of the parts (GPCs) of a GPU. Seven of 17 and one of 13 have room for as
# many clusters of 8 and of 16 as are published; `predict` simulates the same device.
MULTIPROCESSORS_TOGETHER = 17
KEPT_BYTES, REGISTER_BYTES = 340 * 1024, 150 * 1024  # of W_hh in one SM, and in its registers
SHARED_BYTES_PER_CLOCK = 128.0
L2_BYTES_PER_US = 5.5e6
EXCHANGES = {  # name: (CTAs that share W_hh, latency in us, bytes a clock into one SM)
    "CTA": ((1,), 0.02, math.inf),
    "cluster": ((2, 4, 8, 16), 0.2, 20.0),
    "grid": ((22, 33, 44, 66, 132), 0.75, 45.0),
}
POINTWISE_US = 0.13
# In backward each unit has four gradients to exchange, partly summed, and more pointwise work.
BACKWARD_EXCHANGE, BACKWARD_LATENCY, BACKWARD_POINTWISE = 2.5, 1.3, 1.35
# Flops a clock and SM of the matrix units (by mma.sync and, from 64 rows on, wgmma) and of FFMA.
MATRIX_FLOPS = {"bf16": 4096.0, "fp16": 4096.0, "tf32": 2048.0}
MMA_SHARE, WGMMA_SHARE, FFMA_FLOPS = 0.52, 0.87, 256.0 * 0.85
ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}


def resident_clusters(blocks: int) -> int:
    """How many clusters of so many blocks, each with a multiprocessor of its own, run at once."""
    whole, rest = divmod(MULTIPROCESSORS, MULTIPROCESSORS_TOGETHER)
    return whole * (MULTIPROCESSORS_TOGETHER // blocks) + rest // blocks


def step_us(precision: str, N: int, H: int, P: int, backward: bool) -> tuple[float, str]:
    """The floor of one step of N rows in us, and how its W_hh (4H x P, and P x H if P < H) is
    spread.
    """
    element = ELEMENT_BYTES[precision]
    weights = 4 * H * P + (P * H if P < H else 0)
    best = (math.inf, "")
    for name, (counts, latency, bytes_per_clock) in EXCHANGES.items():
        for ctas in counts:
            share = weights * element / ctas
            if name != "grid" and share > KEPT_BYTES:
                continue
            together = resident_clusters(ctas) if name == "cluster" else MULTIPROCESSORS // ctas
            groups = min(together, N)
            rows = math.ceil(N / groups)
            kept = min(share, KEPT_BYTES)
            product = max(
                2 * weights * _padded(rows, precision) / ctas / _flops_per_us(precision, rows),
                max(0.0, share - REGISTER_BYTES) / SHARED_BYTES_PER_CLOCK / CLOCKS_PER_US,
                (share - kept) * ctas * groups / L2_BYTES_PER_US,
            )
            moved = 0.0 if ctas == 1 else rows * P * element / bytes_per_clock / CLOCKS_PER_US
            if backward:
                moved *= BACKWARD_EXCHANGE
            pointwise = POINTWISE_US * (BACKWARD_POINTWISE if backward else 1)
            waited = latency * (BACKWARD_LATENCY if backward else 1)
            best = min(best, (product + pointwise + waited + moved, f"{name} {ctas}"))
    return best


def _padded(rows: int, precision: str) -> int:
    return rows if precision == "fp32" else 8 * math.ceil(rows / 8)


def _flops_per_us(precision: str, rows: int) -> float:
    if precision == "fp32":
        return FFMA_FLOPS * CLOCKS_PER_US
    return MATRIX_FLOPS[precision] * CLOCKS_PER_US * (MMA_SHARE if rows < 64 else WGMMA_SHARE)


def outside_flops(case: Case, mode: str) -> float:
    """Flops of the products outside the recurrence: x W_ih^T, and in training those for dx, dW_ih
    and dW_hh.
    """
    total = 0.0
    for layer in range(case.L):
        inputs = case.I if layer == 0 else case.D * case.output_size
        once = 8 * case.H * inputs
        total += 3 * once + 8 * case.H * case.output_size if mode == "train" else once
    return total * case.D * case.rows()


def floor_seconds(case: Case, precision: str, mode: str, product_rate: float) -> dict[str, object]:
    """The floor of a call: ``floor_s``, and its parts.

    Args:
        product_rate: flops per second of large products, measured on the device.

    Directions run side by side, as more rows of the same step; layers one after the other.
    """
    rows = max(1, round(case.rows() * case.D / case.T))
    forward, spread = step_us(precision, rows, case.H, case.output_size, False)
    step = forward
    if mode == "train":
        step += step_us(precision, rows, case.H, case.output_size, True)[0]
    products = outside_flops(case, mode) / product_rate
    return {
        "floor_s": case.T * case.L * step * 1e-6 + products,
        "floor_step_us": step,
        "floor_products_s": products,
        "floor_spread": spread,
    }
