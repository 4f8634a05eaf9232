"""What `torch.ao.quantization.quantize_dynamic` makes of the fast modules: what it makes of torch's
of the same weights. nn/torch_tools.py sees to it that they are asked."""

from torch import nn

from ..nn.cell import FastLSTMCell
from ..nn.lstm import FastLSTM
from ..torch_classes import LSTM, LSTMCell
from .late import when_imported


def _through_torch(quantized: type[nn.Module]) -> type:
    """In a mapping of quantize_dynamic, `quantized` for a module that has to_torch()."""

    class FromFast:
        @staticmethod
        def from_float(module, use_precomputed_fake_quant=False):
            plain = module.to_torch()
            plain.qconfig = module.qconfig
            return quantized.from_float(plain)

    return FromFast


def _register(mappings) -> None:
    dynamic = mappings.DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS
    for fast, plain in ((FastLSTM, LSTM), (FastLSTMCell, LSTMCell)):
        if plain in dynamic:
            dynamic.setdefault(fast, _through_torch(dynamic[plain]))


def tell_quantization() -> None:
    when_imported("torch.ao.quantization.quantization_mappings", _register)
