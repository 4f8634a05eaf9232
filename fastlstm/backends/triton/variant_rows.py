"""Shared by the variants' kernels: zoneout, sums over a row, gates of a row, a product to memory.

A program of the row kernels computes one step of one row n and direction d, all units at once:
BLOCK >= H and P. The equations are in `fastlstm.reference.variant`, zoneout's counters in
`fastlstm.reference.zoneout_masks`.
"""

import triton
import triton.language as tl

from .products import product


@triton.jit
def zoned(
    old, new, seed, units, n, t, d, stream, first_step, WORD: tl.constexpr,
    PROBABILITY: tl.constexpr, THRESHOLD: tl.constexpr,
):  # fmt: skip
    """Zoneout of old and new values: by random masks, without a seed their expected value."""
    if PROBABILITY == 0.0:
        return new
    elif seed is None:
        return PROBABILITY * old + (1.0 - PROBABILITY) * new
    else:
        zero = (units * 0).to(tl.uint32)
        words = tl.philox(
            tl.load(seed), units.to(tl.uint32), zero + n.to(tl.uint32),
            zero + (t + first_step).to(tl.uint32), zero + (stream + d).to(tl.uint32),
        )  # fmt: skip
        return tl.where((words[WORD] >> 8) < THRESHOLD, old, new)


@triton.jit
def is_reverse(d, stream):
    """0 for a forward direction, 1 for a reverse one: a call with D = 1 may be either (stream)."""
    return d + stream % 2


@triton.jit
def row_end(lengths, n, T):
    """The number of steps of the row, 0..T."""
    if lengths is None:
        return T
    else:
        return tl.minimum(tl.maximum(tl.load(lengths + n), 0), T).to(tl.int32)


@triton.jit
def all_if(condition, units):
    """A row's bool as a vector over units: the interpreter cannot combine scalars with vectors."""
    return units < tl.where(condition, units.shape[0], 0)


@triton.jit
def crossing(reset_mask, boundary, end, n, N, units):
    """Whether the row's state crosses `boundary` (masks.py): bool [units], all equal."""
    if reset_mask is None:
        return units >= 0
    else:
        at = reset_mask + boundary.to(tl.int64) * N + n
        cut = tl.load(at, boundary < end, 0).to(tl.int32)
        return all_if(cut == 0, units)


@triton.jit
def lane_sum(x, live):
    return tl.sum(tl.where(live, x, 0.0), axis=0)


@triton.jit
def gates_of(pointer, units, live, H: tl.constexpr, WIDE: tl.constexpr):
    """Four consecutive rows of H elements, in the accumulation dtype."""
    i, f = tl.load(pointer + units, live, 0.0), tl.load(pointer + H + units, live, 0.0)
    g, o = tl.load(pointer + 2 * H + units, live, 0.0), tl.load(pointer + 3 * H + units, live, 0.0)
    return i.to(WIDE), f.to(WIDE), g.to(WIDE), o.to(WIDE)


@triton.jit
def put_gates(pointer, i, f, g, o, units, live, H: tl.constexpr):
    tl.store(pointer + units, i, live)
    tl.store(pointer + H + units, f, live)
    tl.store(pointer + 2 * H + units, g, live)
    tl.store(pointer + 3 * H + units, o, live)


@triton.jit(do_not_specialize=["N"])
def lstm_variant_kernel_product(
    state, weight, out, N, UNITS: tl.constexpr, K: tl.constexpr, A_ROW: tl.constexpr,
    WEIGHT: tl.constexpr, STRIDE: tl.constexpr, COLUMN: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (D, N, UNITS) = state (D, N, A_ROW), with K elements a row, times a direction's weights,
    WEIGHT elements with strides as in products.product: grid (row tiles, tiles of UNITS, D)."""
    row0, unit0 = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.program_id(1).to(tl.int64) * BLOCK_H
    rows, units = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_H)
    d = tl.program_id(2).to(tl.int64)
    live_rows, live_units = rows < (N - row0).to(tl.int32), units < (UNITS - unit0).to(tl.int32)
    sums = product(
        state + (d * N + row0) * A_ROW + rows * A_ROW, live_rows,
        weight + d * WEIGHT + unit0 * COLUMN,
        units, live_units, K, A_ROW, STRIDE, COLUMN, BLOCK_K, PRECISION,
    )  # fmt: skip
    at = out + (d * N + row0) * UNITS + unit0 + rows[:, None] * UNITS + units[None, :]
    tl.store(at, sums, live_rows[:, None] & live_units[None, :])
