"""Kernels of the backward: tiles of rows x units of one step, launched step by step or in a loop.

The s-th step of direction d is time step t = T - 1 - s (d = 0) or s (d = 1), from each direction's
last step to its first; dh0 is computed after all of them.

The gradient that h_t receives through the recurrence is W_hh times dgates of the step that came
after it in the forward (`arriving_dh`). dgates is passed between steps in two buffers (D, N, 4H),
as h is in the forward. Without a projection `cell_tile` uses that gradient directly. With one the
gradient of h_t, with all its terms, is stored in dhidden, and rounded as a product's factor in
`arrived` (D, N, P), which W_hr multiplies. dc is updated in place in (D, N, H).

Tiles and arrays as in forward_kernels; dgates (T, N, D, 4H); dcells (T, N, D, H); doutput, dhidden
(T, N, D, P). Rows of the buffers, W_hh and W_hr are padded to 4 H_ROW, P_ROW and H_ROW.
"""

import triton
import triton.language as tl

from .cell import cell_backward
from .forward_kernels import load_gates, store_gates
from .masks import cut_rows, row_ends
from .products import product
from .rounding import factor, rounded


@triton.jit
def arriving_dh(
    dgates_in, weight_hh, dh_n, lengths, reset_mask, t, d, row0, rows, output0, outputs, T, N,
    H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr, P_ROW: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of h_t from the recurrence or, at a row's last step, from h_n: [rows, outputs].
    For t = -1 (d = 0) or T (d = 1) that of h0."""
    live_rows = rows < (N - row0).to(tl.int32)
    ends = row_ends(lengths, row0, rows, live_rows, T)
    # The step that came next in the forward; from the padding the reverse direction's first step.
    after = tl.where(d == 0, t + 1, tl.minimum(t, ends) - 1)  # [rows]
    exists = (after >= 0) & (after < ends)
    dh = product(
        dgates_in + (d * N + row0) * (4 * H_ROW) + rows * (4 * H_ROW), live_rows & exists,
        weight_hh + d * 4 * H * P_ROW + output0, outputs, outputs < (P_ROW - output0).to(tl.int32),
        4 * H, 4 * H_ROW, P_ROW, 1, BLOCK_K, PRECISION,
    )  # fmt: skip
    if reset_mask is not None:
        cut = cut_rows(reset_mask, tl.maximum(after, 0) + d, ends, row0, rows, live_rows, N)
        dh = tl.where(cut[:, None], 0.0, dh)
    if dh_n is not None:
        live = (live_rows & ~exists)[:, None] & (outputs < (P - output0).to(tl.int32))[None, :]
        at = rows[:, None] * P + outputs[None, :]
        last = tl.load(dh_n + (d * N + row0) * P + output0 + at, live, 0.0)
        dh = tl.where(exists[:, None], dh, last.to(dh.dtype))
    return dh


@triton.jit
def with_doutput(dh, doutput, t, d, row0, rows, output0, outputs, live, N, D: tl.constexpr, P: tl.constexpr):
    """dh [rows, outputs] plus the gradient of step t's output."""
    if doutput is not None:
        p = doutput + ((t.to(tl.int64) * N + row0) * D + d) * P + output0
        at = rows[:, None] * (D * P) + outputs[None, :]
        dh += tl.load(p + at, live, 0.0).to(dh.dtype)
    return dh


@triton.jit
def arrival_tile(
    doutput, dh_n, weight_hh, lengths, reset_mask, dgates_in, arrived, dhidden, t, d, row0, rows,
    output0, outputs, T, N, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    H_ROW: tl.constexpr, P_ROW: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With a projection: stores the gradient of h_t in dhidden and `arrived`."""
    live_rows = rows < (N - row0).to(tl.int32)
    live = live_rows[:, None] & (outputs < (P - output0).to(tl.int32))[None, :]
    dh = arriving_dh(
        dgates_in, weight_hh, dh_n, lengths, reset_mask, t, d, row0, rows, output0, outputs, T, N,
        H, P, H_ROW, P_ROW, BLOCK_K, PRECISION,
    )  # fmt: skip
    dh = with_doutput(dh, doutput, t, d, row0, rows, output0, outputs, live, N, D, P)
    if lengths is not None:
        ends = row_ends(lengths, row0, rows, live_rows, T)
        dh = tl.where((t < ends)[:, None], dh, 0.0)
    p = dhidden + ((t.to(tl.int64) * N + row0) * D + d) * P + output0
    tl.store(p + rows[:, None] * (D * P) + outputs[None, :], dh, live)
    p = arrived + (d * N + row0) * P_ROW + output0
    dh = factor(dh, arrived.dtype.element_ty, PRECISION)
    tl.store(p + rows[:, None] * P_ROW + outputs[None, :], dh, live)


@triton.jit
def cell_tile(
    doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask, dc_state,
    dgates_in, dgates_out, arrived, dgates, t, d, row0, rows, unit0, units, T, N,
    D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr, P_ROW: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Step t of direction d for some rows and units: dgates, and dc of the step before."""
    WIDE: tl.constexpr = dc_state.dtype.element_ty
    live_rows, live_units = rows < (N - row0).to(tl.int32), units < (H - unit0).to(tl.int32)
    live = live_rows[:, None] & live_units[None, :]
    step_row = (t.to(tl.int64) * N + row0) * D + d  # a tile's first row in arrays (T, N, D, ...)
    state = (d * N + row0) * H + unit0
    state_at = rows[:, None] * H + units[None, :]
    cells_at = rows[:, None] * (D * H) + units[None, :]
    ends = row_ends(lengths, row0, rows, live_rows, T)

    # Loads that do not depend on the product come first, to overlap with it.
    i, f, g, o = load_gates(gates, step_row, unit0, rows, units, live, D, H)
    c = tl.load(cells + step_row * H + unit0 + cells_at, live, 0.0)
    dc_old = tl.load(dc_state + state + state_at, live, 0.0)
    # The cell that entered step t: c0 at the direction's first step, otherwise that of the step
    # before.
    cut = cut_rows(reset_mask, t + d, ends, row0, rows, live_rows, N)
    first = t == tl.where(d == 0, 0, ends - 1)
    from_cells = (~first & ~cut)[:, None] & live
    if lengths is not None:
        from_cells = from_cells & (t < ends)[:, None]
    before = (step_row + (2 * d - 1) * D * N) * H + unit0
    c_in = tl.load(cells + before + cells_at, from_cells, 0.0)
    c_in += tl.load(c0 + state + state_at, (first & ~cut)[:, None] & live, 0.0).to(WIDE)

    if arrived is None:
        dh = arriving_dh(
            dgates_in, weight_hh, dh_n, lengths, reset_mask, t, d, row0, rows, unit0, units, T, N,
            H, P, H_ROW, P_ROW, BLOCK_K, PRECISION,
        )  # fmt: skip
        dh = with_doutput(dh, doutput, t, d, row0, rows, unit0, units, live, N, D, P)
    else:
        dh = product(
            arrived + (d * N + row0) * P_ROW + rows * P_ROW, live_rows,
            weight_hr + d * P * H_ROW + unit0, units, units < (H_ROW - unit0).to(tl.int32),
            P, P_ROW, H_ROW, 1, BLOCK_K, PRECISION,
        )  # fmt: skip
    dc = dc_old
    if dcells is not None:
        dc += tl.load(dcells + step_row * H + unit0 + cells_at, live, 0.0)
    di, df, dg, do, dc = cell_backward(dh, dc, i.to(WIDE), f.to(WIDE), g.to(WIDE), o.to(WIDE), c, c_in)

    DTYPE: tl.constexpr = dgates_out.dtype.element_ty
    factors = (d * N + row0) * (4 * H_ROW) + unit0
    factors_at = rows[:, None] * (4 * H_ROW) + units[None, :]
    fi, ff = factor(di, DTYPE, PRECISION), factor(df, DTYPE, PRECISION)
    fg, fo = factor(dg, DTYPE, PRECISION), factor(do, DTYPE, PRECISION)
    if reset_mask is not None:
        dc = tl.where(cut[:, None], 0.0, dc)
    if lengths is not None:
        # Rows for which step t does not exist pass their gradients on unchanged.
        valid = (t < ends)[:, None]
        old = dgates_in + factors
        fi = tl.where(valid, fi, tl.load(old + factors_at, live, 0.0))
        ff = tl.where(valid, ff, tl.load(old + H + factors_at, live, 0.0))
        fg = tl.where(valid, fg, tl.load(old + 2 * H + factors_at, live, 0.0))
        fo = tl.where(valid, fo, tl.load(old + 3 * H + factors_at, live, 0.0))
        di, df = tl.where(valid, di, 0.0), tl.where(valid, df, 0.0)
        dg, do = tl.where(valid, dg, 0.0), tl.where(valid, do, 0.0)
        dc = tl.where(valid, dc, dc_old)
    tl.store(dc_state + state + state_at, dc, live)
    new = dgates_out + factors
    tl.store(new + factors_at, fi, live)
    tl.store(new + H + factors_at, ff, live)
    tl.store(new + 2 * H + factors_at, fg, live)
    tl.store(new + 3 * H + factors_at, fo, live)
    store_gates(dgates, di, df, dg, do, step_row, unit0, rows, units, live, D, H)


@triton.jit
def start_tile(
    dh_n, weight_hh, lengths, reset_mask, dgates_in, dh0, d, row0, rows, output0, outputs, T, N,
    H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr, P_ROW: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dh0 for some rows and outputs, after all steps."""
    dh = arriving_dh(
        dgates_in, weight_hh, dh_n, lengths, reset_mask, tl.where(d == 0, -1, T), d, row0, rows,
        output0, outputs, T, N, H, P, H_ROW, P_ROW, BLOCK_K, PRECISION,
    )  # fmt: skip
    live_rows, live_outputs = rows < (N - row0).to(tl.int32), outputs < (P - output0).to(tl.int32)
    live = live_rows[:, None] & live_outputs[None, :]
    p = dh0 + (d * N + row0) * P + output0
    tl.store(p + rows[:, None] * P + outputs[None, :], rounded(dh, dh0.dtype.element_ty), live)


@triton.jit(do_not_specialize=["s", "T", "N"])
def lstm_backward_kernel_step(
    doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask, dc_state,
    even, odd, arrived, dgates, s, T, N, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    H_ROW: tl.constexpr, P_ROW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The s-th step of each direction: grid (row tiles, tiles of H, D)."""
    row0, unit0 = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.program_id(1).to(tl.int64) * BLOCK_H
    d = tl.program_id(2).to(tl.int64)
    if s % 2 == 0:
        dgates_in, dgates_out = even, odd
    else:
        dgates_in, dgates_out = odd, even
    cell_tile(
        doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask,
        dc_state, dgates_in, dgates_out, arrived, dgates, tl.where(d == 0, T - 1 - s, s), d, row0,
        tl.arange(0, BLOCK_N), unit0, tl.arange(0, BLOCK_H), T, N, D, H, P, H_ROW, P_ROW, BLOCK_K,
        PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["s", "T", "N"])
def lstm_backward_kernel_step_arrival(
    doutput, dh_n, weight_hh, lengths, reset_mask, even, odd, arrived, dhidden,
    s, T, N, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr,
    P_ROW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """With a projection, before `lstm_backward_kernel_step`: grid (row tiles, tiles of P, D)."""
    row0, output0 = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.program_id(1).to(tl.int64) * BLOCK_H
    d = tl.program_id(2).to(tl.int64)
    dgates_in = even if s % 2 == 0 else odd
    arrival_tile(
        doutput, dh_n, weight_hh, lengths, reset_mask, dgates_in, arrived, dhidden,
        tl.where(d == 0, T - 1 - s, s), d, row0, tl.arange(0, BLOCK_N), output0,
        tl.arange(0, BLOCK_H), T, N, D, H, P, H_ROW, P_ROW, BLOCK_K, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["T", "N"])
def lstm_backward_kernel_start(
    dh_n, weight_hh, lengths, reset_mask, dgates_in, dh0,
    T, N, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr,
    P_ROW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dh0, after all steps: grid (row tiles, tiles of P, D)."""
    row0, output0 = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.program_id(1).to(tl.int64) * BLOCK_H
    start_tile(
        dh_n, weight_hh, lengths, reset_mask, dgates_in, dh0, tl.program_id(2).to(tl.int64), row0,
        tl.arange(0, BLOCK_N), output0, tl.arange(0, BLOCK_H), T, N, H, P, H_ROW, P_ROW, BLOCK_K,
        PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["T", "N"])
def lstm_backward_kernel_sequence(
    doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask, dc_state,
    even, odd, arrived, dgates, dhidden, dh0, T, N, D: tl.constexpr, H: tl.constexpr,
    P: tl.constexpr, H_ROW: tl.constexpr, P_ROW: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All steps of some rows of one direction: grid (row tiles, 1, D). dgates and `arrived` are
    exchanged as h is in `lstm_forward_kernel_sequence`, which is safe for the same reasons."""
    row0, rows = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.arange(0, BLOCK_N)
    units = tl.arange(0, BLOCK_H)
    d = tl.program_id(2).to(tl.int64)
    for s in tl.range(0, T, num_stages=1):
        t = tl.where(d == 0, T - 1 - s, s)
        if s % 2 == 0:
            dgates_in, dgates_out = even, odd
        else:
            dgates_in, dgates_out = odd, even
        if arrived is not None:
            for start in tl.range(0, P, BLOCK_H, num_stages=1):
                arrival_tile(
                    doutput, dh_n, weight_hh, lengths, reset_mask, dgates_in, arrived, dhidden, t,
                    d, row0, rows, tl.cast(start, tl.int64), units, T, N, D, H, P, H_ROW, P_ROW,
                    BLOCK_K, PRECISION,
                )  # fmt: skip
            tl.debug_barrier()
        for start in tl.range(0, H, BLOCK_H, num_stages=1):
            cell_tile(
                doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask,
                dc_state, dgates_in, dgates_out, arrived, dgates, t, d, row0, rows,
                tl.cast(start, tl.int64), units, T, N, D, H, P, H_ROW, P_ROW, BLOCK_K, PRECISION,
            )  # fmt: skip
        tl.debug_barrier()
    dgates_in = even if T % 2 == 0 else odd
    for start in tl.range(0, P, BLOCK_H, num_stages=1):
        start_tile(
            dh_n, weight_hh, lengths, reset_mask, dgates_in, dh0, d, row0, rows,
            tl.cast(start, tl.int64), units, T, N, H, P, H_ROW, P_ROW, BLOCK_K, PRECISION,
        )  # fmt: skip
