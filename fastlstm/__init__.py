"""fastlstm: `FastLSTM` in place of `torch.nn.LSTM`, same arguments, weights and results, faster."""

import sys

from . import functional, init, int8
from ._version import __version__
from .interop import dynamo, flops, onnx, opacus, quantization
from .interop.aten import decompositions
from .interop.convert import convert
from .interop.keras import from_keras
from .interop.patch import patch, unpatch
from .nn.cell import FastLSTMCell
from .nn.lstm import FastLSTM

__all__ = [
    "FastLSTM",
    "FastLSTMCell",
    "__version__",
    "convert",
    "decompositions",
    "from_keras",
    "functional",
    "init",
    "int8",
    "onnx",
    "patch",
    "unpatch",
]

# Earlier module paths, which programs import and pickles refer to.
for _name, _place in {
    "cell": "nn.cell",
    "convert": "interop.convert",
    "keras": "interop.keras",
    "module": "nn.lstm",
    "onnx": "interop.onnx",
    "variant_layers": "weights",
}.items():
    sys.modules[f"{__name__}.{_name}"] = sys.modules[f"{__name__}.{_place}"]

dynamo.tell_dynamo()
flops.tell_counters()
onnx.tell_exporter()
quantization.tell_quantization()
opacus.tell_opacus()
