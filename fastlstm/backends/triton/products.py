"""Matrix products of one tile: loops over slabs of K, with operands read from global memory.

Operands are in the tensors' dtype, rounded for the product (rounding.factor); sums are in the
accumulation dtype.

Offsets, here and in all kernels: the start of a tile is a 64-bit scalar, so that arrays may have
any size; offsets within a tile are 32-bit, which takes half the registers.
"""

import triton
import triton.language as tl

from .rounding import INTERPRETED


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b for a [rows, K], b [K, columns].

    PRECISION: "ieee" or "tf32", the rounding of float32 operands, or "float64", for which Triton
    has no tensor cores: an explicit, slow sum of products. The interpreter multiplies 16-bit tiles
    wrongly (bfloat16 as its bit pattern), so there they are converted to float32, which is exact.
    """
    if PRECISION == "float64":
        acc += tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    elif INTERPRETED:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def zeros(rows, columns, PRECISION: tl.constexpr):
    """Zeros [rows, columns] in the accumulation dtype."""
    if PRECISION == "float64":
        return tl.zeros([rows.shape[0], columns.shape[0]], dtype=tl.float64)
    else:
        return tl.zeros([rows.shape[0], columns.shape[0]], dtype=tl.float32)


@triton.jit
def product(
    a,
    live_rows,
    weight,
    columns,
    live_columns,
    K: tl.constexpr,
    A_ROW: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum over k of a[row, k] weight[k, column]: [rows, columns].

    a: pointers to the rows' first elements [rows]; K elements, then zeros up to A_ROW. weight:
    pointer to weight[0, 0], with strides STRIDE for k and COLUMN for columns. Rows and columns that
    are not live are zeros.
    """
    acc = zeros(live_rows, live_columns, PRECISION)
    ks = tl.arange(0, BLOCK_K)
    for start in range(0, K, BLOCK_K):
        live = live_rows[:, None] & (ks < A_ROW - start)[None, :]
        left = tl.load(a[:, None] + (start + ks)[None, :], live, 0.0)
        right = tl.load(
            weight + tl.cast(start, tl.int64) * STRIDE + ks[:, None] * STRIDE + columns[None, :] * COLUMN,
            (ks < K - start)[:, None] & live_columns[None, :],
            0.0,
        )
        acc = dot(left, right, acc, PRECISION)
    return acc


@triton.jit
def gate_products(
    h,
    live_rows,
    weight,
    units,
    live_units,
    GATE: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """h W_hh^T for the four gates of some units: i, f, g, o, each [rows, units].

    h: pointers to the rows' first elements [rows], K elements each. weight: pointer to the row of
    W_hh of gate i and unit 0; rows have K elements, and gates are GATE elements apart.
    """
    i = zeros(live_rows, live_units, PRECISION)
    f, g, o = i, i, i
    ks = tl.arange(0, BLOCK_K)
    for start in range(0, K, BLOCK_K):
        live_k = ks < K - start
        left = tl.load(h[:, None] + (start + ks)[None, :], live_rows[:, None] & live_k[None, :], 0.0)
        live = live_k[:, None] & live_units[None, :]
        at = (start + ks)[:, None] + units[None, :] * K
        i = dot(left, tl.load(weight + at, live, 0.0), i, PRECISION)
        f = dot(left, tl.load(weight + GATE + at, live, 0.0), f, PRECISION)
        g = dot(left, tl.load(weight + 2 * GATE + at, live, 0.0), g, PRECISION)
        o = dot(left, tl.load(weight + 3 * GATE + at, live, 0.0), o, PRECISION)
    return i, f, g, o
