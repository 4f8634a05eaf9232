"""Matrix products of one tile: loops over K in blocks, operands streamed from global memory.

Operands go to the matrix unit in the weights' dtype; sums are made in the dtype of accumulation.
Offsets are 64-bit: rows and units come as int64, and the compiler folds what is constant.
"""

import triton
import triton.language as tl

from .rounding import INTERPRETED, rounded


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b for a [rows, K], b [K, columns].

    PRECISION: "ieee" or "tf32", what float32 operands are rounded to, or "float64", for which
    there is no matrix unit in Triton: a sum of products, slow and right. The interpreter multiplies
    16-bit tiles wrongly (bfloat16 as its bit pattern), but such products are exact in float32.
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
    """[rows, columns] in the dtype of accumulation."""
    if PRECISION == "float64":
        return tl.zeros([rows.shape[0], columns.shape[0]], dtype=tl.float64)
    else:
        return tl.zeros([rows.shape[0], columns.shape[0]], dtype=tl.float32)


@triton.jit
def product(
    a,
    live_rows,
    weight,
    live_columns,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum over k of a[row, k] weight[k, column]: [rows, columns].

    a: pointers to the rows' first elements [rows], K elements each, in the weights' dtype or a
    wider one. weight: pointers to the columns' first elements [columns], STRIDE between elements.
    Rows and columns that are not live count as zeros.
    """
    acc = zeros(live_rows, live_columns, PRECISION)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        live_k = k < K
        left = tl.load(a[:, None] + k[None, :], live_rows[:, None] & live_k[None, :], 0.0)
        right = tl.load(
            weight[None, :] + (k * STRIDE)[:, None], live_k[:, None] & live_columns[None, :], 0.0
        )
        acc = dot(rounded(left, right.dtype), right, acc, PRECISION)
    return acc


@triton.jit
def gate_products(
    h,
    live_rows,
    weight,
    live_units,
    GATE: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """h W_hh^T for the four gates of some units: i, f, g, o, each [rows, units].

    h: pointers to the rows' first elements [rows], K elements each. weight: pointers to the first
    elements of the units' rows of W_hh for gate i [units]; those of the next gate are GATE elements
    further on.
    """
    i = zeros(live_rows, live_units, PRECISION)
    f, g, o = i, i, i
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        live_k = k < K
        left = tl.load(h[:, None] + k[None, :], live_rows[:, None] & live_k[None, :], 0.0)
        live = live_k[:, None] & live_units[None, :]
        w = weight[None, :] + k[:, None]
        i = dot(left, tl.load(w, live, 0.0), i, PRECISION)
        f = dot(left, tl.load(w + GATE, live, 0.0), f, PRECISION)
        g = dot(left, tl.load(w + 2 * GATE, live, 0.0), g, PRECISION)
        o = dot(left, tl.load(w + 3 * GATE, live, 0.0), o, PRECISION)
    return i, f, g, o
