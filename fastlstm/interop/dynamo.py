"""torch.compile takes no RNN into a graph unless `torch._dynamo.config.allow_rnn` is set, which
would unroll every other nn.LSTM of a model step by step. A FastLSTM is an op or two, so it is let
in by itself: that setting holds while Dynamo wraps one of these modules, and for nothing else.

Where torch has no such place any more, nothing is changed, and the graph breaks as for an nn.LSTM.
"""

import functools

from ..nn.lstm import FastLSTM
from .late import when_imported


def _let_in(builder) -> None:
    wrap = builder.VariableBuilder.wrap_module

    @functools.wraps(wrap)
    def wrap_module(self, value):
        if isinstance(value, FastLSTM) and not builder.config.allow_rnn:
            with builder.config.patch(allow_rnn=True):
                return wrap(self, value)
        return wrap(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


def tell_dynamo() -> None:
    when_imported("torch._dynamo.variables.builder", _let_in)
