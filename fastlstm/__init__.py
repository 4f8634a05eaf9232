"""fastlstm: `FastLSTM` in place of `torch.nn.LSTM`, same arguments, weights and results, faster."""

import sys

from . import functional, init, int8
from ._version import __version__
from .interop import dynamo, late, onnx, quantization
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
onnx.tell_exporter()
quantization.tell_quantization()
# What programs rarely have is told of us by files that are imported with it.
_COUNTERS = ("torch.utils.flop_counter", "thop.profile", "ptflops.pytorch_ops", "ptflops.aten_ops")
late.tell_when_imported("flops", "tell_counters", *_COUNTERS)
late.tell_when_imported("opacus", "tell_opacus", "opacus.grad_sample")
