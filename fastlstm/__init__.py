"""fastlstm: `FastLSTM` in place of `torch.nn.LSTM`, same arguments, weights and results, faster."""

from . import functional
from ._version import __version__

__all__ = ["__version__", "functional"]
