"""lengths and reset_mask inside the kernels, as `fastlstm.reference.lstm` defines them.

Boundary b lies between steps b - 1 and b. The forward direction (d = 0) crosses boundary t when it
enters step t, the reverse direction (d = 1) boundary t + 1: in both, t + d.
"""

import triton
import triton.language as tl


@triton.jit
def row_ends(lengths, row0, rows, live_rows, T):
    """How many steps each row has, 0..T: int32 [rows]."""
    if lengths is None:
        return tl.zeros(rows.shape, dtype=tl.int32) + T
    else:
        ends = tl.load(lengths + row0 + rows, live_rows, 0)
        return tl.minimum(tl.maximum(ends, 0), T).to(tl.int32)


@triton.jit
def cut_rows(reset_mask, boundary, ends, row0, rows, live_rows, N):
    """Whether no state crosses `boundary`, a step number >= 0 or one per row: bool [rows].

    A boundary at or after a row's end is none: the reverse direction begins there with h0, c0.
    """
    if reset_mask is None:
        return rows < 0
    else:
        at = reset_mask + (boundary.to(tl.int64) * N + row0) + rows
        return tl.load(at, live_rows & (boundary < ends), 0) != 0
