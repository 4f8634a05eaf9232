"""The variants' backward: a program for each row and direction of a step, as in the forward.

factor_state (D, N, FOUR_ROW) is the gradient of W_hh h at the later step, rounded as a product's
factor, zeros after a reset; sums (D, N, P) is W_hh times it; kept (D, N, P) is the gradient that
zoneout passes to the earlier h directly; dc_state (D, N, H) is the gradient of c. They do not
change at steps that a row does not have.
"""

import triton
import triton.language as tl

from .cell import tanh
from .rounding import factor, rounded
from .variant_rows import (
    all_if,
    crossing,
    gates_of,
    is_reverse,
    lane_sum,
    put_gates,
    row_end,
    zoned,
)


@triton.jit
def from_later(sums, kept, h_mask, row, units, live, P: tl.constexpr):
    """The gradient of h_t, or h0, from the later step."""
    dh = tl.load(sums + row * P + units, live, 0.0)
    if h_mask is not None:
        dh *= tl.load(h_mask + row * P + units, live, 0.0)
    return dh + tl.load(kept + row * P + units, live, 0.0)


@triton.jit
def arrive(
    doutput, dh_n, sums, kept, h_mask, seed, crosses, last, t, d, n, units, stream, first_step, N,
    D: tl.constexpr, P: tl.constexpr, ZONEOUT: tl.constexpr, THRESHOLD: tl.constexpr,
):  # fmt: skip
    """The gradient of y~_t of a row; stores the part that zoneout passes to h_{t-1} in `kept`."""
    live = units < P
    row = d * N + n
    dh = from_later(sums, kept, h_mask, row, units, live, P)
    if dh_n is not None:
        dh += tl.load(dh_n + row * P + units, live & last, 0.0).to(dh.dtype)
    if doutput is not None:
        at = ((t.to(tl.int64) * N + n) * D + d) * P
        dh += tl.load(doutput + at + units, live, 0.0).to(dh.dtype)
    nothing = tl.zeros([units.shape[0]], dtype=dh.dtype)
    by = zoned(dh, nothing, seed, units, n, t, d, stream, first_step, 0, ZONEOUT, THRESHOLD)
    tl.store(kept + row * P + units, tl.where(crosses, by, nothing), live)
    return zoned(nothing, dh, seed, units, n, t, d, stream, first_step, 0, ZONEOUT, THRESHOLD)


@triton.jit(do_not_specialize=["stream", "first_step", "s", "T", "N"])
def lstm_variant_kernel_arrive(
    doutput, dh_n, lengths, reset_mask, h_mask, seed, sums, kept, arrived, dhidden, stream,
    first_step, s, T, N, D: tl.constexpr, P: tl.constexpr, P_ROW: tl.constexpr,
    BLOCK: tl.constexpr, ZONEOUT: tl.constexpr, THRESHOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With a projection: stores the gradient of y~ of the s-th step in dhidden, and rounded as a
    product's factor in `arrived` (D, N, P_ROW): grid (N, D)."""
    n, d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    units = tl.arange(0, BLOCK)
    reverse = is_reverse(d, stream)
    t = tl.where(reverse == 0, T - 1 - s, s)
    end = row_end(lengths, n, T)
    at = ((t.to(tl.int64) * N + n) * D + d) * P + units
    if t < end:
        crosses = crossing(reset_mask, t + reverse, end, n, N, units)
        last = all_if(t == tl.where(reverse == 0, end - 1, 0), units)
        dy = arrive(
            doutput, dh_n, sums, kept, h_mask, seed, crosses, last, t, d, n, units, stream,
            first_step,
            N, D, P, ZONEOUT, THRESHOLD,
        )  # fmt: skip
        tl.store(dhidden + at, dy, units < P)
        dy = factor(dy, arrived.dtype.element_ty, PRECISION)
        tl.store(arrived + (d * N + n) * P_ROW + units, dy, units < P)
    else:
        tl.store(dhidden + at, tl.zeros([BLOCK], dtype=dhidden.dtype.element_ty), units < P)


@triton.jit(do_not_specialize=["stream", "first_step", "s", "T", "N"])
def lstm_variant_kernel_cell_backward(
    doutput, dh_n, dcells, c0, norm_hh, norm_c, bias_c, h_mask, seed, cells, gates, candidates,
    product_hat, product_scale, cell_hat, cell_scale, lengths, reset_mask, sums, kept, unprojected,
    dc_state, factor_state, dgates_x, dproducts, dshown, stream, first_step, s, T, N,
    D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, FOUR_ROW: tl.constexpr, BLOCK: tl.constexpr,
    ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr, THRESHOLD_H: tl.constexpr,
    THRESHOLD_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The s-th step from the last: gradients of its gates, its cell and its product. unprojected
    (D, N, H): with a projection the gradient of h~. Grid (N, D)."""
    WIDE: tl.constexpr = dc_state.dtype.element_ty
    GATES: tl.constexpr = dgates_x.dtype.element_ty
    DTYPE: tl.constexpr = factor_state.dtype.element_ty
    n, d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    units = tl.arange(0, BLOCK)
    live = units < H
    reverse = is_reverse(d, stream)
    t = tl.where(reverse == 0, T - 1 - s, s)
    end = row_end(lengths, n, T)
    row, step = d * N + n, (t.to(tl.int64) * N + n) * D + d
    if t < end:
        crosses = crossing(reset_mask, t + reverse, end, n, N, units)
        if unprojected is None:
            last = all_if(t == tl.where(reverse == 0, end - 1, 0), units)
            dh = arrive(
                doutput, dh_n, sums, kept, h_mask, seed, crosses, last, t, d, n, units, stream,
                first_step, N, D, P, ZONEOUT_H, THRESHOLD_H,
            )  # fmt: skip
        else:
            dh = tl.load(unprojected + row * H + units, live, 0.0)
        i, f, g, o = gates_of(gates + step * 4 * H, units, live, H, WIDE)
        if norm_c is None:
            tanh_c = tanh(tl.load(candidates + step * H + units, live, 0.0))
            dcandidate = dh * o * (1.0 - tanh_c * tanh_c)
        else:
            hat = tl.load(cell_hat + step * H + units, live, 0.0)
            gain = tl.load(norm_c + d * H + units, live, 0.0).to(WIDE)
            shown = gain * hat
            if bias_c is not None:
                shown += tl.load(bias_c + d * H + units, live, 0.0).to(WIDE)
            tanh_c = tanh(shown)
            at_shown = dh * o * (1.0 - tanh_c * tanh_c)
            tl.store(dshown + step * H + units, at_shown, live)
            dhat = gain * at_shown
            away = dhat - lane_sum(dhat, live) / H - hat * (lane_sum(dhat * hat, live) / H)
            dcandidate = tl.load(cell_scale + step) * away
        dc = tl.load(dc_state + row * H + units, live, 0.0)
        if dcells is not None:
            dc += tl.load(dcells + step * H + units, live, 0.0)
        nothing = tl.zeros([BLOCK], dtype=WIDE)
        dc_kept = zoned(dc, nothing, seed, units, n, t, d, stream, first_step, 1, ZONEOUT_C, THRESHOLD_C)
        dcandidate += zoned(nothing, dc, seed, units, n, t, d, stream, first_step, 1, ZONEOUT_C, THRESHOLD_C)
        first = all_if(t == tl.where(reverse == 0, 0, end - 1), units)
        before = (step + (2 * reverse - 1) * D * N) * H
        c_in = tl.load(cells + before + units, live & ~first & crosses, 0.0)
        c_in += tl.load(c0 + row * H + units, live & first & crosses, 0.0).to(WIDE)
        dc_in = dcandidate * f + dc_kept
        tl.store(dc_state + row * H + units, tl.where(crosses, dc_in, nothing), live)
        i, f, g, o = (
            dcandidate * g * i * (1.0 - i), dcandidate * c_in * f * (1.0 - f),
            dcandidate * i * (1.0 - g * g), dh * tanh_c * o * (1.0 - o),
        )  # fmt: skip
        put_gates(
            dgates_x + step * 4 * H, rounded(i, GATES), rounded(f, GATES), rounded(g, GATES),
            rounded(o, GATES), units, live, H,
        )  # fmt: skip
        if norm_hh is not None:
            gi, gf, gg, go = gates_of(norm_hh + d * 4 * H, units, live, H, WIDE)
            hi, hf, hg, ho = gates_of(product_hat + step * 4 * H, units, live, H, WIDE)
            i, f, g, o = gi * i, gf * f, gg * g, go * o
            mean = (lane_sum(i, live) + lane_sum(f, live) + lane_sum(g, live) + lane_sum(o, live)) / (4 * H)
            mean_hat = lane_sum(i * hi, live) + lane_sum(f * hf, live)
            mean_hat = (mean_hat + lane_sum(g * hg, live) + lane_sum(o * ho, live)) / (4 * H)
            scale = tl.load(product_scale + step)
            i, f = scale * (i - mean - hi * mean_hat), scale * (f - mean - hf * mean_hat)
            g, o = scale * (g - mean - hg * mean_hat), scale * (o - mean - ho * mean_hat)
            put_gates(
                dproducts + step * 4 * H, rounded(i, GATES), rounded(f, GATES), rounded(g, GATES),
                rounded(o, GATES), units, live, H,
            )  # fmt: skip
        i, f, g, o = (
            tl.where(crosses, i, nothing),
            tl.where(crosses, f, nothing),
            tl.where(crosses, g, nothing),
            tl.where(crosses, o, nothing),
        )
        put_gates(
            factor_state + row * FOUR_ROW, factor(i, DTYPE, PRECISION), factor(f, DTYPE, PRECISION),
            factor(g, DTYPE, PRECISION), factor(o, DTYPE, PRECISION), units, live, H,
        )  # fmt: skip
    else:
        zero = tl.zeros([BLOCK], dtype=GATES)
        put_gates(dgates_x + step * 4 * H, zero, zero, zero, zero, units, live, H)
        if norm_hh is not None:
            put_gates(dproducts + step * 4 * H, zero, zero, zero, zero, units, live, H)
            tl.store(dshown + step * H + units, zero.to(WIDE), live)


@triton.jit(do_not_specialize=["T", "N"])
def lstm_variant_kernel_initial(dh_n, lengths, h_mask, sums, kept, dh0, T, N, P: tl.constexpr, BLOCK: tl.constexpr):
    """dh0: grid (N, D)."""
    n, d = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    units = tl.arange(0, BLOCK)
    live = units < P
    row = d * N + n
    dh = from_later(sums, kept, h_mask, row, units, live, P)
    if dh_n is not None:
        # A row without steps: its h_n is h0, so dh_n is added here.
        empty = all_if(row_end(lengths, n, T) == 0, units)
        dh += tl.load(dh_n + row * P + units, live & empty, 0.0).to(dh.dtype)
    tl.store(dh0 + row * P + units, rounded(dh, dh0.dtype.element_ty), live)
