"""Which dtype a call and its products are computed in: what the dtypes, the machine and torch's
settings say."""

import torch
from torch import Tensor


def allows_tf32() -> bool:
    """Whether an LSTM's float32 products may round their factors to tf32.

    `torch.backends.cudnn.rnn.fp32_precision` decides, or what it inherits from, as it does for
    `torch.nn.LSTM`; the older `torch.backends.cudnn.allow_tf32` sets it. torch's default is yes.
    """
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"


def cpu_parts() -> int:
    """How many bfloat16 numbers the CPU's kernels may take for a float32 one in products on AMX:
    three are all of it, two are its first 16 bits ("tf32"; "high"), one its first 8 ("bf16";
    "medium").

    `torch.backends.mkldnn.rnn.fp32_precision` decides where it, or what it inherits from, is set,
    as it does for `torch.nn.LSTM`; else `torch.backends.mkldnn.matmul.fp32_precision`, which
    `torch.set_float32_matmul_precision` sets. torch's default is all of it.
    """
    setting = torch.backends.mkldnn.rnn.fp32_precision
    if setting == "none":
        setting = torch.backends.mkldnn.matmul.fp32_precision
    return {"tf32": 2, "bf16": 1}.get(setting, 3)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a backend computes in, and keeps cells in: float32 for the 16-bit types, else
    `dtype` itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _bf16_tiles() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


# Without AMX, a 16-bit product on the CPU is slower than the float32 one (measured: half its rate
# on AVX512-BF16), so the gate inputs are made, and their gradients used, in float32 there: faster,
# and more exact.
_WIDE_CPU_PRODUCTS = not _bf16_tiles()
_HALF = (torch.bfloat16, torch.float16)


def wide_products(x: Tensor) -> bool:
    """Whether the products of a layer on x are made in the accumulation dtype."""
    return _WIDE_CPU_PRODUCTS and x.dtype in _HALF and x.device.type == "cpu"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on this device, or None outside autocast."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def to_autocast(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`value` as autocast hands it to an op: in `dtype`, but float64, integers and None as they
    are."""
    if (
        not isinstance(value, Tensor)
        or value.dtype == torch.float64
        or not value.is_floating_point()
    ):
        return value
    return value.to(dtype)
