"""torch.ao.quantization's dynamic quantisation: `quantize_dynamic` makes an int8 FastLSTM of a
FastLSTM (with nn/torch_tools.quantization_config), and `from_quantised` makes one of torch's own
quantised modules."""

import sys

import torch
from torch import nn

from ..int8 import LEVELS, pack, quantise_rows, summed_bias
from ..nn.cell import FastLSTMCell
from ..nn.lstm import FastLSTM
from ..nn.torch_tools import quantised_to
from ..torch_classes import LSTM, LSTMCell
from .late import when_imported

_DYNAMIC = "torch.ao.nn.quantized.dynamic.modules.rnn"


def _from_fast(quantized: type[nn.Module]) -> type:
    """The entry of a fast class in quantize_dynamic's mapping: the same module in int8; for float16
    weights, which fastlstm does not support beside float32, torch's own class `quantized`."""

    class FromFast:
        @staticmethod
        def from_float(module, use_precomputed_fake_quant=False):
            if quantised_to(module.qconfig) != torch.float16:
                cls = FastLSTM if isinstance(module, FastLSTM) else FastLSTMCell
                return cls.from_torch(module, weight_dtype=torch.int8)
            plain = module.to_torch()
            plain.qconfig = module.qconfig
            return quantized.from_float(plain)

    return FromFast


def _register(mappings) -> None:
    dynamic = mappings.DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS
    for fast, plain in ((FastLSTM, LSTM), (FastLSTMCell, LSTMCell)):
        if plain in dynamic:
            dynamic.setdefault(fast, _from_fast(dynamic[plain]))


def tell_quantization() -> None:
    when_imported("torch.ao.quantization.quantization_mappings", _register)


def quantised_kind(module: nn.Module) -> type[nn.Module] | None:
    """The fast class for a dynamically quantised LSTM or cell of torch; None for other modules."""
    theirs = sys.modules.get(_DYNAMIC)
    if theirs is None:
        return None
    return {theirs.LSTM: FastLSTM, theirs.LSTMCell: FastLSTMCell}.get(type(module))


def reason_to_leave(module: nn.Module) -> str | None:
    """Why a quantised module of torch cannot be converted; None if it can."""
    dtype = module.dtype if hasattr(module, "dtype") else module.weight_dtype
    if dtype != torch.qint8:
        return f"its weights are {dtype}; quantise the float model to int8, or convert that"
    return None


def from_quantised(module: nn.Module) -> nn.Module:
    """An int8 FastLSTM, or FastLSTMCell, with the integers and scales of torch's quantised module.

    torch's -128 becomes -127, a change of one quantisation step. Integers with a zero point are
    quantised again.
    """
    names = ["input_size", "hidden_size", "bias"]
    cls = quantised_kind(module)
    if cls is FastLSTM:
        names += ["num_layers", "batch_first", "dropout", "bidirectional"]
    made = cls(**{name: getattr(module, name) for name in names}, device="meta")
    made.weight_dtype = torch.int8
    for name, weight in module.get_weight().items():
        q, scale = _rows(weight)
        made.register_buffer(f"{name}_packed", pack(q), persistent=False)
        made.register_buffer(f"{name}_scale", scale, persistent=False)
    if module.bias:
        biases = module.get_bias()
        for name in [name for name in biases if name.startswith("bias_ih")]:
            suffix = name.removeprefix("bias_ih")
            total = summed_bias(biases[name], biases[f"bias_hh{suffix}"])
            made.register_buffer(f"bias_sum{suffix}", total, persistent=False)
    return made.train(module.training)


def _rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and float32 scales, one for each row, of a qint8 matrix."""
    rows = weight.shape[0]
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        scales, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    else:
        scales = torch.full((rows,), weight.q_scale(), dtype=torch.float64)
        zeros = torch.full((rows,), weight.q_zero_point())
    if zeros.any():
        return quantise_rows(weight.dequantize())
    return weight.int_repr().clamp(min=-LEVELS), scales.float()


def replace(module: nn.Module, by: nn.Module) -> None:
    """Turns `module` into `by` in place; it keeps its own hooks."""
    own = {name: value for name, value in vars(module).items() if name.endswith("_hooks")}
    vars(module).clear()
    module.__class__ = type(by)
    vars(module).update(vars(by) | own)
