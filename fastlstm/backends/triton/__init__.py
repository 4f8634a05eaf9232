"""The recurrence of one layer as Triton kernels: all directions and steps, forward and backward.

Importing this imports no Triton: the first call does.

Files, from the bottom: configs (the table of configurations), cell (the mathematics), masks,
products, forward_kernels, backward_kernels, launch (the host's side), tune (new tables); variant_*,
the same for layer normalisation, recurrent dropout and zoneout.
"""

import functools
import re
from importlib import metadata

from torch import Tensor

LEAST = (3, 6)  # what the oldest torch that serves here comes with


@functools.cache
def available() -> str | None:
    """None where Triton can compile the kernels, else the reason why not."""
    for package in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"):
        try:
            version = metadata.version(package)
            break
        except metadata.PackageNotFoundError:
            continue
    else:
        return "Triton is not installed: pip install 'triton>=3.6' (Linux)"
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < LEAST:
        return f"Triton {version} is too old: pip install 'triton>=3.6'"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton {version} cannot be imported: {error}"
    return None


def forward(
    gates_x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    save_tape: bool,
    save_cells: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One layer, all directions and steps, as `fastlstm.reference.lstm.lstm_forward`.

    Args:
        gates_x: (T, N, D, 4H) in h0's dtype or its accumulation dtype. h0: (D, N, P). c0: (D, N,
        H). weight_hh: (D, 4H, P). weight_hr: (D, P, H) or None. lengths: (N,) int64 or None.
        reset_mask: (T, N) bool or None. On one device, of any strides.
        save_tape, save_cells: whether the last two, or the cells, are wanted.
        tf32: whether float32 products may round their operands to TF32; without effect where the
        hardware has none.

    Returns:
        output (T, N, D*P), h_n (D, N, P), c_n (D, N, H) in h0's dtype; cells (T, N, D, H) in the
        accumulation dtype, with neither tape nor cells saved (0,); gates (T, N, D, 4H) in h0's
        dtype, without the tape (0,). New and contiguous.

    Raises:
        ValueError: FASTLSTM_TRITON_WAY names no way.
    """
    from . import launch

    return launch.forward(
        gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, save_tape, save_cells, tf32
    )


def backward(
    doutput: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dcells: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    cells: Tensor,
    gates: Tensor,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    wide_gates: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reverse loop of `forward`, from its tape, as `fastlstm.reference.backward.lstm_backward`.

    Args:
        doutput, dh_n, dc_n, dcells: gradients of the first four results of `forward`, None where
        zero. cells, gates: the tape. wide_gates: whether dgates_x is wanted in the accumulation
        dtype. The others as for `forward`; h0 is read for its shape and dtype alone.

    Returns:
        dgates_x (T, N, D, 4H), dh0 (D, N, P), dc0 (D, N, H), and with a projection dhidden (T, N,
        D, P), all of the gradient that arrived at each h_t, in the accumulation dtype, else (0,).
        New and contiguous. The 16-bit types, and TF32, round the operands of the products, so also
        dgates where W_hh multiplies them.

    Raises:
        ValueError: FASTLSTM_TRITON_WAY names no way.
    """
    from . import launch

    return launch.backward(
        doutput, dh_n, dc_n, dcells, h0, c0, weight_hh, weight_hr, cells, gates, lengths,
        reset_mask, wide_gates, tf32,
    )  # fmt: skip


def variant_forward(*args) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `fastlstm.reference.variant.variant_forward`, with its arguments, and then save_tape,
    save_cells and tf32 as for `forward`."""
    from . import variant_launch

    return variant_launch.forward(*args)


def variant_loop(*args):
    """As `fastlstm.reference.backward.loop`, with the arguments of `ops.variant.VariantLoop` and
    then tf32.

    Returns:
        dgates_x, dh0, dc0, dhidden, dproducts, dshown.
    """
    from . import variant_launch

    return variant_launch.loop(*args)
