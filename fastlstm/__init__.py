"""fastlstm: `FastLSTM` in place of `torch.nn.LSTM`, same arguments, weights and results, faster."""

from . import functional
from ._version import __version__
from .module import FastLSTM

__all__ = ["FastLSTM", "__version__", "functional"]
