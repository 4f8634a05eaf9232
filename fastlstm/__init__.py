"""fastlstm: `FastLSTM` in place of `torch.nn.LSTM`, same arguments, weights and results, faster."""

from . import dynamo, flops, functional, init, onnx, opacus, quantization
from ._version import __version__
from .cell import FastLSTMCell
from .convert import convert
from .keras import from_keras
from .module import FastLSTM

__all__ = [
    "FastLSTM",
    "FastLSTMCell",
    "__version__",
    "convert",
    "from_keras",
    "functional",
    "init",
    "onnx",
]

dynamo.tell_dynamo()
flops.tell_counters()
onnx.tell_exporter()
quantization.tell_quantization()
opacus.tell_validator()
