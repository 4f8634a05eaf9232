"""The dtypes and precisions of a call and its products, by dtype, machine and torch's settings."""

import torch
from torch import Tensor


def allows_tf32() -> bool:
    """Whether an LSTM's float32 products may round their factors to tf32.

    As for `torch.nn.LSTM`, `torch.backends.cudnn.rnn.fp32_precision` decides, or the setting that
    it inherits; the older `torch.backends.cudnn.allow_tf32` sets it. torch's default is yes.
    """
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"


def cpu_parts() -> int:
    """How many bfloat16 numbers represent a float32 one in products on AMX: three represent all of
    it, two its first 16 bits of mantissa ("tf32"; "high"), one the first 8 ("bf16"; "medium").

    As for `torch.nn.LSTM`, `torch.backends.mkldnn.rnn.fp32_precision` decides if it, or the setting
    that it inherits, is set; otherwise `torch.backends.mkldnn.matmul.fp32_precision`, which
    `torch.set_float32_matmul_precision` sets. torch's default is three.
    """
    setting = torch.backends.mkldnn.rnn.fp32_precision
    if setting == "none":
        setting = torch.backends.mkldnn.matmul.fp32_precision
    return {"tf32": 2, "bf16": 1}.get(setting, 3)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which backends compute and store cells: float32 for the 16-bit types, otherwise
    `dtype` itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


# Without AMX, a 16-bit product on the CPU is slower than in float32 (measured: half the rate on
# AVX512-BF16), so the products for gate inputs and their gradients are in float32 there, which is
# also more exact.
_has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
_WIDE_CPU_PRODUCTS = not _has_amx()
_HALF = (torch.bfloat16, torch.float16)


def wide_products(x: Tensor) -> bool:
    """Whether a layer's products with x are in the accumulation dtype."""
    return _WIDE_CPU_PRODUCTS and x.dtype in _HALF and x.device.type == "cpu"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on this device, or None outside autocast."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def to_autocast(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`value` as autocast casts it: to `dtype`, but float64, integers and None are not changed."""
    if not isinstance(value, Tensor) or value.dtype == torch.float64 or not value.is_floating_point():
        return value
    return value.to(dtype)
