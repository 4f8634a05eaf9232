"""Kernels for few units: one program runs all steps of some rows of one direction, with h, c and
the weights on chip. Steps exchange nothing through global memory, so there are no barriers; inputs
are loaded one step ahead.

All units are one tile, BLOCK_H >= H and P. Tiles and arrays as in forward_kernels and
backward_kernels, without padding; grid (row tiles, 1, D).
"""

import triton
import triton.language as tl

from .cell import cell_backward, cell_forward
from .forward_kernels import load_gates, store_gates
from .masks import cut_rows, row_ends
from .products import dot, zeros
from .rounding import factor, rounded


@triton.jit(do_not_specialize=["T", "N"])
def lstm_forward_kernel_resident(
    gates_x, weight_hh, weight_hr, lengths, reset_mask, h0, c0, h_n, c_n, output, cells, gates,
    T, N, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(2).to(tl.int64)
    row0, rows = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.arange(0, BLOCK_N)
    units = tl.arange(0, BLOCK_H)
    live_rows = rows < (N - row0).to(tl.int32)
    live = live_rows[:, None] & (units < H)[None, :]
    live_outputs = live_rows[:, None] & (units < P)[None, :]
    ends = row_ends(lengths, row0, rows, live_rows, T)

    w = weight_hh + d * 4 * H * P
    w_at = units[None, :] * P + units[:, None]  # [P, H]
    live_w = (units < P)[:, None] & (units < H)[None, :]
    wi, wf = tl.load(w + w_at, live_w, 0.0), tl.load(w + H * P + w_at, live_w, 0.0)
    wg, wo = tl.load(w + 2 * H * P + w_at, live_w, 0.0), tl.load(w + 3 * H * P + w_at, live_w, 0.0)
    DTYPE: tl.constexpr = h0.dtype.element_ty
    wi, wf = factor(wi, DTYPE, PRECISION), factor(wf, DTYPE, PRECISION)
    wg, wo = factor(wg, DTYPE, PRECISION), factor(wo, DTYPE, PRECISION)
    if weight_hr is not None:
        wr_at = units[None, :] * H + units[:, None]  # [H, P]
        live_wr = (units < H)[:, None] & (units < P)[None, :]
        wr = tl.load(weight_hr + d * P * H + wr_at, live_wr, 0.0)
        wr = factor(wr, DTYPE, PRECISION)
    state_row = d * N + row0
    h_at = rows[:, None] * P + units[None, :]
    c_at = rows[:, None] * H + units[None, :]
    h = tl.load(h0 + state_row * P + h_at, live_outputs, 0.0)
    zero = zeros(rows, units, PRECISION)
    c = tl.load(c0 + state_row * H + c_at, live, 0.0).to(zero.dtype)

    y_at = rows[:, None] * (D * P) + units[None, :]
    cells_at = rows[:, None] * (D * H) + units[None, :]
    step_row = (tl.where(d == 0, 0, T - 1).to(tl.int64) * N + row0) * D + d
    xi, xf, xg, xo = load_gates(gates_x, step_row, 0, rows, units, live, D, H)
    for s in tl.range(0, T, num_stages=1):
        t = tl.where(d == 0, s, T - 1 - s)
        step_row = (t.to(tl.int64) * N + row0) * D + d
        cut = cut_rows(reset_mask, t + d, ends, row0, rows, live_rows, N)[:, None]
        next_t = tl.where(d == 0, tl.minimum(s + 1, T - 1), tl.maximum(T - 2 - s, 0))
        next_row = (next_t.to(tl.int64) * N + row0) * D + d
        next_i, next_f, next_g, next_o = load_gates(gates_x, next_row, 0, rows, units, live, D, H)

        h_in, c_in = h, c
        if reset_mask is not None:
            h_in = tl.where(cut, 0.0, h).to(DTYPE)
            c_in = tl.where(cut, 0.0, c)
        h_in = factor(h_in, DTYPE, PRECISION)
        i, f, g, o, c_out, h_out = cell_forward(
            dot(h_in, wi, xi.to(zero.dtype), PRECISION),
            dot(h_in, wf, xf.to(zero.dtype), PRECISION),
            dot(h_in, wg, xg.to(zero.dtype), PRECISION),
            dot(h_in, wo, xo.to(zero.dtype), PRECISION),
            c_in,
        )
        if weight_hr is not None:
            h_out = dot(factor(h_out, DTYPE, PRECISION), wr, zero, PRECISION)
        h_out = rounded(h_out, DTYPE)

        if lengths is None:
            h, c = h_out, c_out
        else:
            valid = (t < ends)[:, None]
            h, c = tl.where(valid, h_out, h), tl.where(valid, c_out, c)
            h_out, c_out = tl.where(valid, h_out, 0.0).to(DTYPE), tl.where(valid, c_out, 0.0)
            i, f = tl.where(valid, i, 0.0), tl.where(valid, f, 0.0)
            g, o = tl.where(valid, g, 0.0), tl.where(valid, o, 0.0)
        tl.store(output + step_row * P + y_at, h_out, live_outputs)
        if cells is not None:
            tl.store(cells + step_row * H + cells_at, c_out, live)
        if gates is not None:
            store_gates(gates, i, f, g, o, step_row, 0, rows, units, live, D, H)
        xi, xf, xg, xo = next_i, next_f, next_g, next_o
    tl.store(h_n + state_row * P + h_at, h, live_outputs)
    tl.store(c_n + state_row * H + c_at, rounded(c, c_n.dtype.element_ty), live)


@triton.jit
def step_inputs(
    doutput, dcells, cells, gates, c0, t, d, row0, rows, units, live, live_outputs, ends, N,
    D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The inputs of a step of the backward: its gates and cell, the cell of the step before (before
    any reset), doutput and dcells (zeros where None)."""
    step_row = (t.to(tl.int64) * N + row0) * D + d
    cells_at = rows[:, None] * (D * H) + units[None, :]
    i, f, g, o = load_gates(gates, step_row, 0, rows, units, live, D, H)
    c = tl.load(cells + step_row * H + cells_at, live, 0.0)
    first = (t == tl.where(d == 0, 0, ends - 1))[:, None]
    before = cells + (step_row + (2 * d - 1) * D * N) * H
    c_in = tl.load(before + cells_at, live & (t < ends)[:, None] & ~first, 0.0)
    c0_at = rows[:, None] * H + units[None, :]
    c_in += tl.load(c0 + (d * N + row0) * H + c0_at, live & first, 0.0).to(c.dtype)
    dy = zeros(rows, units, PRECISION)
    dc = dy
    if doutput is not None:
        y_at = rows[:, None] * (D * P) + units[None, :]
        dy += tl.load(doutput + step_row * P + y_at, live_outputs, 0.0).to(dy.dtype)
    if dcells is not None:
        dc += tl.load(dcells + step_row * H + cells_at, live, 0.0)
    return i, f, g, o, c, c_in, dy, dc


@triton.jit(do_not_specialize=["T", "N"])
def lstm_backward_kernel_resident(
    doutput, dh_n, dc_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask,
    dgates, dhidden, dh0, dc0, T, N, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(2).to(tl.int64)
    row0, rows = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.arange(0, BLOCK_N)
    units = tl.arange(0, BLOCK_H)
    live_rows = rows < (N - row0).to(tl.int32)
    live = live_rows[:, None] & (units < H)[None, :]
    live_outputs = live_rows[:, None] & (units < P)[None, :]
    ends = row_ends(lengths, row0, rows, live_rows, T)

    w = weight_hh + d * 4 * H * P
    w_at = units[:, None] * P + units[None, :]  # [H, P]
    live_w = (units < H)[:, None] & (units < P)[None, :]
    wi, wf = tl.load(w + w_at, live_w, 0.0), tl.load(w + H * P + w_at, live_w, 0.0)
    wg, wo = tl.load(w + 2 * H * P + w_at, live_w, 0.0), tl.load(w + 3 * H * P + w_at, live_w, 0.0)
    DTYPE: tl.constexpr = gates.dtype.element_ty
    wi, wf = factor(wi, DTYPE, PRECISION), factor(wf, DTYPE, PRECISION)
    wg, wo = factor(wg, DTYPE, PRECISION), factor(wo, DTYPE, PRECISION)
    if weight_hr is not None:
        wr_at = units[:, None] * H + units[None, :]  # [P, H]
        live_wr = (units < P)[:, None] & (units < H)[None, :]
        wr = tl.load(weight_hr + d * P * H + wr_at, live_wr, 0.0)
        wr = factor(wr, DTYPE, PRECISION)
    state_row = d * N + row0
    h_at = rows[:, None] * P + units[None, :]
    c_at = rows[:, None] * H + units[None, :]
    zero = zeros(rows, units, PRECISION)
    dh, dc = zero, zero
    if dh_n is not None:
        dh += tl.load(dh_n + state_row * P + h_at, live_outputs, 0.0).to(dh.dtype)
    if dc_n is not None:
        dc += tl.load(dc_n + state_row * H + c_at, live, 0.0).to(dc.dtype)

    i, f, g, o, c, c_in, dy, dcell = step_inputs(
        doutput, dcells, cells, gates, c0, tl.where(d == 0, T - 1, 0), d, row0, rows, units, live,
        live_outputs, ends, N, D, H, P, PRECISION,
    )  # fmt: skip
    for s in tl.range(0, T, num_stages=1):
        t = tl.where(d == 0, T - 1 - s, s)
        step_row = (t.to(tl.int64) * N + row0) * D + d
        cut = cut_rows(reset_mask, t + d, ends, row0, rows, live_rows, N)[:, None]
        next_t = tl.where(d == 0, tl.maximum(T - 2 - s, 0), tl.minimum(s + 1, T - 1))
        next_i, next_f, next_g, next_o, next_c, next_c_in, next_dy, next_dcell = step_inputs(
            doutput, dcells, cells, gates, c0, next_t, d, row0, rows, units, live, live_outputs,
            ends, N, D, H, P, PRECISION,
        )  # fmt: skip

        dh_t = dh + dy
        if weight_hr is not None:
            arrived = dh_t
            dh_t = dot(factor(dh_t, DTYPE, PRECISION), wr, zero, PRECISION)
        if reset_mask is not None:
            c_in = tl.where(cut, 0.0, c_in)
        di, df, dg, do, dc_in = cell_backward(
            dh_t, dc + dcell, i.to(zero.dtype), f.to(zero.dtype), g.to(zero.dtype),
            o.to(zero.dtype), c, c_in,
        )  # fmt: skip
        if lengths is not None:
            valid = (t < ends)[:, None]
            di, df = tl.where(valid, di, 0.0), tl.where(valid, df, 0.0)
            dg, do = tl.where(valid, dg, 0.0), tl.where(valid, do, 0.0)
        store_gates(dgates, di, df, dg, do, step_row, 0, rows, units, live, D, H)
        if weight_hr is not None:
            if lengths is not None:
                arrived = tl.where(valid, arrived, 0.0)
            y_at = rows[:, None] * (D * P) + units[None, :]
            tl.store(dhidden + step_row * P + y_at, arrived, live_outputs)

        dh_in = dot(factor(di, DTYPE, PRECISION), wi, zero, PRECISION)
        dh_in = dot(factor(df, DTYPE, PRECISION), wf, dh_in, PRECISION)
        dh_in = dot(factor(dg, DTYPE, PRECISION), wg, dh_in, PRECISION)
        dh_in = dot(factor(do, DTYPE, PRECISION), wo, dh_in, PRECISION)
        if reset_mask is not None:
            dh_in, dc_in = tl.where(cut, 0.0, dh_in), tl.where(cut, 0.0, dc_in)
        if lengths is None:
            dh, dc = dh_in, dc_in
        else:
            dh, dc = tl.where(valid, dh_in, dh), tl.where(valid, dc_in, dc)
        i, f, g, o, dy, dcell = next_i, next_f, next_g, next_o, next_dy, next_dcell
        c, c_in = next_c, next_c_in
    tl.store(dh0 + state_row * P + h_at, rounded(dh, dh0.dtype.element_ty), live_outputs)
    tl.store(dc0 + state_row * H + c_at, rounded(dc, dc0.dtype.element_ty), live)
