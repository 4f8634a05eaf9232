"""Kernels of the forward: tiles of rows x units of one step, launched step by step or in a loop.

A step of direction d computes the gates' products and the cell of each tile (`cell_tile`), and with
a projection, after all units of the step, the projection of each tile (`projection_tile`).
h is passed between steps in two buffers (D, N, P), rounded as a product's factor: a step reads all
of one and writes its tile of the other, so the tiles of a step need no order. c is updated in place
in (D, N, H), each element by the same tile at every step. h_n is initialised with h0, and each
row's last step writes it.

A tile is given by its first row and unit, row0 and unit0 (64 bits), and offsets from there, `rows`
and `units` (32 bits). Arrays: gates_x, gates (T, N, D, 4H); cells (T, N, D, H); output (T, N, D,
P); hidden (D, N, H): with a projection o * tanh(c) of the step, rounded as a product's factor,
otherwise None. All are contiguous, except that a product's factors have rows that start at
multiples of 16 bytes, for wide loads: h and W_hh have P_ROW >= P elements a row, hidden and W_hr
H_ROW >= H, padded with zeros. Optional arrays are None where absent.
"""

import triton
import triton.language as tl

from .cell import cell_forward
from .masks import cut_rows, row_ends
from .products import gate_products, product
from .rounding import factor, rounded


@triton.jit
def load_gates(gates, step_row, unit0, rows, units, live, D: tl.constexpr, H: tl.constexpr):
    """The four gates of a tile of a step, from (T, N, D, 4H): each [rows, units]."""
    p = gates + step_row * (4 * H) + unit0
    at = rows[:, None] * (D * 4 * H) + units[None, :]
    i, f = tl.load(p + at, live, 0.0), tl.load(p + H + at, live, 0.0)
    g, o = tl.load(p + 2 * H + at, live, 0.0), tl.load(p + 3 * H + at, live, 0.0)
    return i, f, g, o


@triton.jit
def store_gates(gates, i, f, g, o, step_row, unit0, rows, units, live, D: tl.constexpr, H: tl.constexpr):
    STORED: tl.constexpr = gates.dtype.element_ty
    p = gates + step_row * (4 * H) + unit0
    at = rows[:, None] * (D * 4 * H) + units[None, :]
    tl.store(p + at, rounded(i, STORED), live)
    tl.store(p + H + at, rounded(f, STORED), live)
    tl.store(p + 2 * H + at, rounded(g, STORED), live)
    tl.store(p + 3 * H + at, rounded(o, STORED), live)


@triton.jit
def store_h(
    h, h_in, h_out, h_n, output, t, d, ends, row0, rows, unit0, units, live, masked, N,
    D: tl.constexpr, P: tl.constexpr, P_ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Stores a tile of h_t in the output, in the state that the next step reads, and for rows whose
    last step this is in h_n."""
    DTYPE: tl.constexpr = output.dtype.element_ty
    valid = (t < ends)[:, None]
    last = (t == tl.where(d == 0, ends - 1, 0))[:, None]
    at = rows[:, None] * P + units[None, :]
    h = rounded(h, DTYPE)
    tl.store(h_n + (d * N + row0) * P + unit0 + at, h, live & last & valid)
    state = (d * N + row0) * P_ROW + unit0
    state_at = rows[:, None] * P_ROW + units[None, :]
    h_factor = factor(h, DTYPE, PRECISION)
    if masked is not None:
        h_factor = tl.where(valid, h_factor, tl.load(h_in + state + state_at, live, 0.0))
        h = tl.where(valid, h, 0.0).to(DTYPE)
    tl.store(h_out + state + state_at, h_factor, live)
    step = ((t.to(tl.int64) * N + row0) * D + d) * P + unit0
    tl.store(output + step + rows[:, None] * (D * P) + units[None, :], h, live)


@triton.jit
def cell_tile(
    gates_x, weight_hh, lengths, reset_mask, h_in, h_out, h_n, c_state, hidden, output, cells,
    gates, t, d, row0, rows, unit0, units, T, N, D: tl.constexpr, H: tl.constexpr,
    P: tl.constexpr, H_ROW: tl.constexpr, P_ROW: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Step t of direction d for some rows and units: gates, c, and h or `hidden`."""
    WIDE: tl.constexpr = c_state.dtype.element_ty
    live_rows, live_units = rows < (N - row0).to(tl.int32), units < (H - unit0).to(tl.int32)
    live = live_rows[:, None] & live_units[None, :]
    step_row = (t.to(tl.int64) * N + row0) * D + d  # a tile's first row in arrays (T, N, D, ...)
    ends = row_ends(lengths, row0, rows, live_rows, T)

    # Loads that do not depend on the product come first, to overlap with it.
    xi, xf, xg, xo = load_gates(gates_x, step_row, unit0, rows, units, live, D, H)
    c_at = c_state + (d * N + row0) * H + unit0 + rows[:, None] * H + units[None, :]
    c_old = tl.load(c_at, live, 0.0)
    cut = cut_rows(reset_mask, t + d, ends, row0, rows, live_rows, N)[:, None]

    i, f, g, o = gate_products(
        h_in + (d * N + row0) * P_ROW + rows * P_ROW, live_rows,
        weight_hh + (d * 4 * H + unit0) * P_ROW, units, live_units, H * P_ROW, P_ROW, BLOCK_K,
        PRECISION,
    )  # fmt: skip
    c_in = c_old
    if reset_mask is not None:
        # Where a reset zeroes a row of h, its row of the product is zero.
        i, f = tl.where(cut, 0.0, i), tl.where(cut, 0.0, f)
        g, o = tl.where(cut, 0.0, g), tl.where(cut, 0.0, o)
        c_in = tl.where(cut, 0.0, c_old)
    i, f, g, o, c, h = cell_forward(i + xi.to(WIDE), f + xf.to(WIDE), g + xg.to(WIDE), o + xo.to(WIDE), c_in)

    c_stored = c
    if lengths is not None:
        valid = (t < ends)[:, None]
        i, f = tl.where(valid, i, 0.0), tl.where(valid, f, 0.0)
        g, o = tl.where(valid, g, 0.0), tl.where(valid, o, 0.0)
        c, c_stored = tl.where(valid, c, c_old), tl.where(valid, c, 0.0)
    tl.store(c_at, c, live)
    if cells is not None:
        at = rows[:, None] * (D * H) + units[None, :]
        tl.store(cells + step_row * H + unit0 + at, c_stored, live)
    if gates is not None:
        store_gates(gates, i, f, g, o, step_row, unit0, rows, units, live, D, H)
    if hidden is None:
        store_h(
            h, h_in, h_out, h_n, output, t, d, ends, row0, rows, unit0, units, live, lengths, N, D,
            P, P_ROW, PRECISION,
        )  # fmt: skip
    else:
        hidden_at = rows[:, None] * H_ROW + units[None, :]
        p = hidden + (d * N + row0) * H_ROW + unit0
        tl.store(p + hidden_at, factor(h, hidden.dtype.element_ty, PRECISION), live)


@triton.jit
def projection_tile(
    weight_hr, lengths, h_in, h_out, h_n, hidden, output, t, d, row0, rows, unit0, units, T, N,
    D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr, P_ROW: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h_t = W_hr (o * tanh(c_t)) for some rows and outputs (`units`, of P)."""
    live_rows, live_units = rows < (N - row0).to(tl.int32), units < (P - unit0).to(tl.int32)
    live = live_rows[:, None] & live_units[None, :]
    ends = row_ends(lengths, row0, rows, live_rows, T)
    h = product(
        hidden + (d * N + row0) * H_ROW + rows * H_ROW, live_rows,
        weight_hr + (d * P + unit0) * H_ROW, units, live_units, H_ROW, H_ROW, 1, H_ROW, BLOCK_K,
        PRECISION,
    )  # fmt: skip
    store_h(
        h, h_in, h_out, h_n, output, t, d, ends, row0, rows, unit0, units, live, lengths, N, D, P,
        P_ROW, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["s", "T", "N"])
def lstm_forward_kernel_step(
    gates_x, weight_hh, lengths, reset_mask, even, odd, h_n, c_state, hidden, output, cells, gates,
    s, T, N, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr,
    P_ROW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The s-th step of each direction: grid (row tiles, tiles of H, D)."""
    row0, unit0 = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.program_id(1).to(tl.int64) * BLOCK_H
    rows, units = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_H)
    d = tl.program_id(2).to(tl.int64)
    t = tl.where(d == 0, s, T - 1 - s)
    if s % 2 == 0:
        h_in, h_out = even, odd
    else:
        h_in, h_out = odd, even
    cell_tile(
        gates_x, weight_hh, lengths, reset_mask, h_in, h_out, h_n, c_state, hidden, output, cells,
        gates, t, d, row0, rows, unit0, units, T, N, D, H, P, H_ROW, P_ROW, BLOCK_K, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["s", "T", "N"])
def lstm_forward_kernel_step_projection(
    weight_hr, lengths, even, odd, h_n, hidden, output,
    s, T, N, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr,
    P_ROW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The projection of the s-th step, after `lstm_forward_kernel_step`: grid (row tiles, tiles of
    P, D)."""
    row0, unit0 = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.program_id(1).to(tl.int64) * BLOCK_H
    rows, units = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_H)
    d = tl.program_id(2).to(tl.int64)
    t = tl.where(d == 0, s, T - 1 - s)
    if s % 2 == 0:
        h_in, h_out = even, odd
    else:
        h_in, h_out = odd, even
    projection_tile(
        weight_hr, lengths, h_in, h_out, h_n, hidden, output, t, d, row0, rows, unit0, units, T, N,
        D, H, P, H_ROW, P_ROW, BLOCK_K, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["T", "N"])
def lstm_forward_kernel_sequence(
    gates_x, weight_hh, weight_hr, lengths, reset_mask, even, odd, h_n, c_state, hidden, output,
    cells, gates, T, N, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, H_ROW: tl.constexpr,
    P_ROW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """All steps of some rows of one direction: grid (row tiles, 1, D).

    Rows are independent, so only the threads of one program exchange h and `hidden`, through global
    memory with a barrier in between. A block's barrier orders all its threads' earlier writes,
    global memory included, before their later reads (CUDA's memory model; on AMD the barrier waits
    for the stores, and the workgroup's loads come after it), and a block uses one L1. The loop over
    steps must not be pipelined, which would load h of the next step before this one stores it:
    hence num_stages=1. The inner loops start after the barrier.
    """
    row0, rows = tl.program_id(0).to(tl.int64) * BLOCK_N, tl.arange(0, BLOCK_N)
    units = tl.arange(0, BLOCK_H)
    d = tl.program_id(2).to(tl.int64)
    for s in tl.range(0, T, num_stages=1):
        t = tl.where(d == 0, s, T - 1 - s)
        if s % 2 == 0:
            h_in, h_out = even, odd
        else:
            h_in, h_out = odd, even
        for start in tl.range(0, H, BLOCK_H, num_stages=1):
            cell_tile(
                gates_x, weight_hh, lengths, reset_mask, h_in, h_out, h_n, c_state, hidden, output,
                cells, gates, t, d, row0, rows, tl.cast(start, tl.int64), units, T, N, D, H, P,
                H_ROW, P_ROW, BLOCK_K, PRECISION,
            )  # fmt: skip
        tl.debug_barrier()
        if hidden is not None:
            for start in tl.range(0, P, BLOCK_H, num_stages=1):
                projection_tile(
                    weight_hr, lengths, h_in, h_out, h_n, hidden, output, t, d, row0, rows,
                    tl.cast(start, tl.int64), units, T, N, D, H, P, H_ROW, P_ROW, BLOCK_K,
                    PRECISION,
                )  # fmt: skip
            tl.debug_barrier()
