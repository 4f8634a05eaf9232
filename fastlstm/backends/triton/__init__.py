"""The recurrence of one layer as Triton kernels: all directions and steps, forward and backward.

Importing this imports no Triton: the first call does. README.md lists the files.
"""

import functools
import re
from importlib import metadata

from torch import Tensor

LEAST = (3, 6)  # the version that the oldest supported torch comes with


@functools.cache
def available() -> str | None:
    """None where Triton can compile the kernels, otherwise the reason why not."""
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


def forward(*args) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One layer, all directions and steps, as `fastlstm.reference.lstm.lstm_forward`.

    Args:
        The fields of `ops.recurrence.Forward`, on one device, with any strides; then tf32: whether
        float32 products may round their operands to TF32, which hardware without TF32 ignores.

    Returns:
        output (T, N, D*P), h_n (D, N, P), c_n (D, N, H) in h0's dtype; cells (T, N, D, H) in the
        accumulation dtype, or (0,) if neither tape nor cells are saved; gates (T, N, D, 4H) in h0's
        dtype, or (0,) without the tape. New and contiguous.

    Raises:
        ValueError: FASTLSTM_TRITON_WAY is set to none of `configs.WAYS`.
    """
    from . import launch

    return launch.forward(*args)


def backward(*args) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reverse loop of `forward`, from its tape, as `fastlstm.reference.backward.lstm_backward`.

    Args:
        The fields of `reference.backward.Backward`, dgates_out None, then tf32 as for `forward`; of
        h0 only shape and dtype are used.

    Returns:
        dgates_x (T, N, D, 4H), dh0 (D, N, P), dc0 (D, N, H), and with a projection dhidden (T, N,
        D, P), the total gradient of each h_t in the accumulation dtype, otherwise (0,). New and
        contiguous. With 16-bit types and TF32 the operands of products are rounded, so dgates too
        where it is multiplied by W_hh.

    Raises:
        ValueError: FASTLSTM_TRITON_WAY is set to none of `configs.WAYS`.
    """
    from . import launch

    return launch.backward(*args)


def variant_forward(*args) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `fastlstm.reference.variant.variant_forward`. Takes the fields of
    `ops.variant.VariantForward`, then tf32 as for `forward`."""
    from . import variant_launch

    return variant_launch.forward(*args)


def variant_loop(*args):
    """As `fastlstm.reference.backward.loop`. Takes the fields of `ops.variant.VariantLoop`, then
    tf32 as for `forward`, and returns those of `reference.backward.Arrived`."""
    from . import variant_launch

    return variant_launch.loop(*args)
