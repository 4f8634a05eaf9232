"""Lets torch.compile trace a FastLSTM. Dynamo breaks the graph at every RNN module unless
`torch._dynamo.config.allow_rnn` is set, which would unroll every nn.LSTM of a model step by step. A
FastLSTM is one or two ops, so the setting is turned on only while Dynamo wraps a FastLSTM.

If a torch version has no `wrap_module`, nothing is changed (late.py warns), and graphs break at a
FastLSTM as at an nn.LSTM.
"""

import functools

from ..nn.lstm import FastLSTM
from .late import when_imported


def _allow_fast_lstm(builder) -> None:
    wrap = builder.VariableBuilder.wrap_module

    @functools.wraps(wrap)
    def wrap_module(self, value):
        if isinstance(value, FastLSTM) and not builder.config.allow_rnn:
            with builder.config.patch(allow_rnn=True):
                return wrap(self, value)
        return wrap(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


def tell_dynamo() -> None:
    when_imported("torch._dynamo.variables.builder", _allow_fast_lstm)
