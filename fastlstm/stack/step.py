"""The custom ops of one time step, for streaming: `lstm_step`, all layers of a stack in one call,
and `lstm_cell`.

They take the weights as they lie. A step of a few microseconds cannot afford what a sequence can:
packing weights, autograd's bookkeeping, views, checks in Python. nn/shortcuts.py says where they
may stand for the general way (ops/layer.py). The ops look at shapes and dtypes themselves, and give
nothing where these do not fit: the general way takes it then, or refuses it in nn.LSTM's words.

x (N, I), h (L, N, P), c (L, N, H), or all without the N; a cell has no L. weights: of each layer
weight_ih (4H, I), weight_hh (4H, P), both biases (4H,) or neither, weight_hr (P, H) or not; the
matrices may be bfloat16 beside float32. `lstm_step` gives y (N, P), h_n, c_n; `lstm_cell` h_n, c_n.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.define import define_op
from ..ops.layer import LayerForward
from ..ops.library import op
from ..ops.recurrence import Results
from ..weights import LSTMWeights, nested, present


class Step(NamedTuple):
    x: Tensor
    h: Tensor
    c: Tensor
    weights: list[Tensor]


class StepResults(NamedTuple):
    y: Tensor
    h_n: Tensor
    c_n: Tensor


class Cell(NamedTuple):
    x: Tensor
    h: Tensor
    c: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


class States(NamedTuple):
    h_n: Tensor
    c_n: Tensor


def _step(call: Step) -> StepResults:
    """Wherever no kernels are registered for a device: layer by layer."""
    x, h, c, weights = call
    batched = x.dim() == 2
    if not batched:
        x, h, c = x.unsqueeze(0), h.unsqueeze(1), c.unsqueeze(1)
    L = h.shape[0]
    each = len(weights) // L
    layers = nested(weights, present(biases=each >= 4, projected=each % 2 == 1), 1)
    h_n, c_n = [], []
    nothing = LSTMWeights(None, None)
    for k, (layer,) in enumerate(layers):
        of_layer = LayerForward(
            x.unsqueeze(0), h[k : k + 1], c[k : k + 1], *layer, *nothing, None, None,
            wide_products=True, save_tape=False, save_cells=False,
        )  # fmt: skip
        results = Results(*op("lstm_layer_forward")(*of_layer))
        x = results.h_n[0]
        h_n.append(results.h_n)
        c_n.append(results.c_n)
    y, h_n, c_n = x.clone(), torch.cat(h_n), torch.cat(c_n)
    if not batched:
        y, h_n, c_n = y[0], h_n.squeeze(1), c_n.squeeze(1)
    return StepResults(y, h_n, c_n)


def _cell(call: Cell) -> States:
    biases = [call.bias_ih, call.bias_hh]
    if any(b is not None for b in biases):
        zeros = call.weight_ih.new_zeros(call.weight_ih.shape[:1])
        biases = [zeros if b is None else b for b in biases]
    weights = [w for w in (call.weight_ih, call.weight_hh, *biases) if w is not None]
    found = _step(Step(call.x, call.h.unsqueeze(0), call.c.unsqueeze(0), weights))
    return States(found.h_n.squeeze(0), found.c_n.squeeze(0))


def _step_fake(call: Step) -> StepResults:
    h, c = call.h, call.c
    return StepResults(h.new_empty(h.shape[1:]), h.new_empty(h.shape), c.new_empty(c.shape))


def _cell_fake(call: Cell) -> States:
    return States(call.h.new_empty(call.h.shape), call.c.new_empty(call.c.shape))


lstm_step = define_op("lstm_step", Step, StepResults, run=_step, fake=_step_fake, or_nothing=True).call
lstm_cell = define_op("lstm_cell", Cell, States, run=_cell, fake=_cell_fake, or_nothing=True).call
