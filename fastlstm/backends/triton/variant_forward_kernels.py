"""The variants' forward after the product of a step: a program for each row and direction.

h_state (D, N, P), finally h_n, and c_state (D, N, H), in the accumulation dtype, are the states
after a row's latest step; factor_state (D, N, P_ROW) is h times its mask, rounded as a product's
factor. They do not change at steps that a row does not have. After a reset, a step uses zeros
instead of the states and of the product.
"""

import triton
import triton.language as tl

from .cell import cell_forward, tanh
from .rounding import factor, rounded
from .variant_rows import crossing, gates_of, is_reverse, lane_sum, put_gates, row_end, zoned


@triton.jit
def emit(
    y, h_state, factor_state, h_mask, output, seed, crosses, t, d, n, units, stream, first_step, N,
    D: tl.constexpr, P: tl.constexpr, P_ROW: tl.constexpr, ZONEOUT: tl.constexpr,
    THRESHOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h_t of a row from y~_t, stored in the output and the states."""
    DTYPE: tl.constexpr = output.dtype.element_ty
    live = units < P
    row = d * N + n
    old = tl.load(h_state + row * P + units, live & crosses, 0.0).to(y.dtype)
    h = rounded(zoned(old, y, seed, units, n, t, d, stream, first_step, 0, ZONEOUT, THRESHOLD), DTYPE)
    tl.store(h_state + row * P + units, h, live)
    tl.store(output + ((t.to(tl.int64) * N + n) * D + d) * P + units, h, live)
    h = h.to(y.dtype)
    if h_mask is not None:
        h *= tl.load(h_mask + row * P + units, live, 0.0)
    tl.store(factor_state + row * P_ROW + units, factor(h, DTYPE, PRECISION), live)


@triton.jit(do_not_specialize=["stream", "first_step", "s", "T", "N"])
def lstm_variant_kernel_cell(
    gates_x, products, lengths, reset_mask, norm_hh, norm_c, bias_c, h_mask, seed, h_state,
    factor_state, c_state, hidden, output, cells, gates, stream, first_step, s, T, N,
    D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr, P_ROW: tl.constexpr,
    BLOCK: tl.constexpr, ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr,
    THRESHOLD_H: tl.constexpr, THRESHOLD_C: tl.constexpr, EPSILON: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The s-th step: gates, c, and h or, for a projection, `hidden` (D, N, H_ROW): grid (N, D)."""
    WIDE: tl.constexpr = c_state.dtype.element_ty
    n, d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    units = tl.arange(0, BLOCK)
    live = units < H
    reverse = is_reverse(d, stream)
    t = tl.where(reverse == 0, s, T - 1 - s)
    end = row_end(lengths, n, T)
    row, step = d * N + n, (t.to(tl.int64) * N + n) * D + d
    if t < end:
        crosses = crossing(reset_mask, t + reverse, end, n, N, units)
        i, f, g, o = gates_of(products + row * 4 * H, units, live & crosses, H, WIDE)
        if norm_hh is not None:
            mean = (lane_sum(i, live) + lane_sum(f, live) + lane_sum(g, live) + lane_sum(o, live)) / (4 * H)
            i, f, g, o = i - mean, f - mean, g - mean, o - mean
            squares = lane_sum(i * i, live) + lane_sum(f * f, live)
            squares += lane_sum(g * g, live) + lane_sum(o * o, live)
            scale = 1.0 / tl.sqrt(squares / (4 * H) + EPSILON)
            gi, gf, gg, go = gates_of(norm_hh + d * 4 * H, units, live, H, WIDE)
            i, f, g, o = gi * (i * scale), gf * (f * scale), gg * (g * scale), go * (o * scale)
        xi, xf, xg, xo = gates_of(gates_x + step * 4 * H, units, live, H, WIDE)
        c_in = tl.load(c_state + row * H + units, live & crosses, 0.0)
        i, f, g, o, candidate, h = cell_forward(xi + i, xf + f, xg + g, xo + o, c_in)
        c = zoned(c_in, candidate, seed, units, n, t, d, stream, first_step, 1, ZONEOUT_C, THRESHOLD_C)
        tl.store(c_state + row * H + units, c, live)
        if cells is not None:
            tl.store(cells + step * H + units, c, live)
        if gates is not None:
            STORED: tl.constexpr = gates.dtype.element_ty
            put_gates(
                gates + step * 4 * H, rounded(i, STORED), rounded(f, STORED), rounded(g, STORED),
                rounded(o, STORED), units, live, H,
            )  # fmt: skip
        if norm_c is not None:
            away = candidate - lane_sum(candidate, live) / H
            scale = 1.0 / tl.sqrt(lane_sum(away * away, live) / H + EPSILON)
            shown = tl.load(norm_c + d * H + units, live, 0.0).to(WIDE) * (away * scale)
            if bias_c is not None:
                shown += tl.load(bias_c + d * H + units, live, 0.0).to(WIDE)
            h = o * tanh(shown)
        if hidden is None:
            emit(
                h, h_state, factor_state, h_mask, output, seed, crosses, t, d, n, units, stream,
                first_step, N, D, P, P_ROW, ZONEOUT_H, THRESHOLD_H, PRECISION,
            )  # fmt: skip
        else:
            kept = factor(h, hidden.dtype.element_ty, PRECISION)
            tl.store(hidden + row * H_ROW + units, kept, live)
    else:
        zero = tl.zeros([BLOCK], dtype=output.dtype.element_ty)
        tl.store(output + step * P + units, zero, units < P)
        if cells is not None:
            tl.store(cells + step * H + units, zero.to(WIDE), live)
        if gates is not None:
            put_gates(gates + step * 4 * H, zero, zero, zero, zero, units, live, H)


@triton.jit(do_not_specialize=["stream", "first_step", "s", "T", "N"])
def lstm_variant_kernel_emit(
    projected, lengths, reset_mask, h_mask, seed, h_state, factor_state, output, stream, first_step,
    s, T, N, D: tl.constexpr, P: tl.constexpr, P_ROW: tl.constexpr, BLOCK: tl.constexpr,
    ZONEOUT: tl.constexpr, THRESHOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h of the s-th step from `projected` (D, N, P), in the accumulation dtype: grid (N, D)."""
    n, d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    units = tl.arange(0, BLOCK)
    reverse = is_reverse(d, stream)
    t = tl.where(reverse == 0, s, T - 1 - s)
    end = row_end(lengths, n, T)
    if t < end:  # else the output is already 0
        crosses = crossing(reset_mask, t + reverse, end, n, N, units)
        y = tl.load(projected + (d * N + n) * P + units, units < P, 0.0)
        emit(
            y, h_state, factor_state, h_mask, output, seed, crosses, t, d, n, units, stream,
            first_step,
            N, D, P, P_ROW, ZONEOUT, THRESHOLD, PRECISION,
        )  # fmt: skip
