"""lengths and reset_mask in the kernels, as `fastlstm.reference.lstm` defines them.

Boundary b is between steps b - 1 and b. To enter step t, the forward direction (d = 0) crosses
boundary t, the reverse direction (d = 1) boundary t + 1: both t + d.
"""

import triton
import triton.language as tl


@triton.jit
def row_ends(lengths, row0, rows, live_rows, T):
    """The number of steps of each row, 0..T: int32 [rows]."""
    if lengths is None:
        return tl.zeros(rows.shape, dtype=tl.int32) + T
    else:
        ends = tl.load(lengths + row0 + rows, live_rows, 0)
        return tl.minimum(tl.maximum(ends, 0), T).to(tl.int32)


@triton.jit
def cut_rows(reset_mask, boundary, ends, row0, rows, live_rows, N):
    """Whether reset_mask cuts at `boundary`, one number >= 0 or one for each row: bool [rows].

    Boundaries at or after a row's end do not cut: the reverse direction starts there with h0, c0.
    """
    if reset_mask is None:
        return rows < 0
    else:
        at = reset_mask + (boundary.to(tl.int64) * N + row0) + rows
        return tl.load(at, live_rows & (boundary < ends), 0) != 0
