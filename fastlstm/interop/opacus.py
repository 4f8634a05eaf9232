"""What opacus' validator says of a FastLSTM: what it says of an nn.LSTM, and the same replacement.

opacus computes gradients for each sample by hooks, which see neither `lengths` nor the gradients of
the states: with them alone, a FastLSTM's would be wrong.
"""

from ..nn.lstm import FastLSTM
from ..torch_classes import LSTM
from .late import when_imported


def _register(validators) -> None:
    known = validators.ModuleValidator
    validate, fix = known.VALIDATORS[LSTM], known.FIXERS[LSTM]
    known.VALIDATORS.setdefault(FastLSTM, validate)
    known.FIXERS.setdefault(FastLSTM, lambda module, **kwargs: fix(module.to_torch(), **kwargs))


def tell_validator() -> None:
    when_imported("opacus.validators", _register)
