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

import torch

from ..ops import layer  # noqa: F401  (registers the op that a layer falls to)
from ..ops.library import library, on_one_device

_STEP = "lstm_step(Tensor x, Tensor h, Tensor c, Tensor[] weights) -> Tensor[]"
_CELL = (
    "lstm_cell(Tensor x, Tensor h, Tensor c, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
    "Tensor? bias_hh) -> Tensor[]"
)


def _step(x, h, c, weights):
    """Wherever no kernels are registered for a device: layer by layer."""
    batched = x.dim() == 2
    if not batched:
        x, h, c = x.unsqueeze(0), h.unsqueeze(1), c.unsqueeze(1)
    each = len(weights) // h.shape[0]
    h_n, c_n = [], []
    for k in range(h.shape[0]):
        ih, hh, *rest = weights[k * each : (k + 1) * each]
        biases = rest[:2] if each >= 4 else (None, None)
        projection = rest[-1] if each % 2 else None
        _, h_k, c_k, _, _ = torch.ops.fastlstm.lstm_layer_forward(
            x.unsqueeze(0), h[k : k + 1], c[k : k + 1], ih, hh, *biases, projection, *(None,) * 7,
            True, False, False,
        )  # fmt: skip
        x = h_k[0]
        h_n.append(h_k)
        c_n.append(c_k)
    y, h_n, c_n = x.clone(), torch.cat(h_n), torch.cat(c_n)
    return [y, h_n, c_n] if batched else [y[0], h_n.squeeze(1), c_n.squeeze(1)]


def _cell(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh):
    weights = [weight_ih, weight_hh]
    if bias_ih is not None or bias_hh is not None:
        zeros = weight_ih.new_zeros(weight_ih.shape[:1])
        weights += [zeros if b is None else b for b in (bias_ih, bias_hh)]
    _, h_n, c_n = _step(x, h.unsqueeze(0), c.unsqueeze(0), weights)
    return [h_n.squeeze(0), c_n.squeeze(0)]


def _step_fake(x, h, c, weights):
    if not on_one_device(x, h, c, *weights):
        return []
    return [h.new_empty(h.shape[1:]), h.new_empty(h.shape), c.new_empty(c.shape)]


def _cell_fake(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh):
    if not on_one_device(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh):
        return []
    return [h.new_empty(h.shape), c.new_empty(c.shape)]


for _name, _schema, _impl, _fake in (
    ("lstm_step", _STEP, _step, _step_fake),
    ("lstm_cell", _CELL, _cell, _cell_fake),
):
    library.define(_schema)
    library.impl(_name, _impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=library)

lstm_step = torch.ops.fastlstm.lstm_step.default
lstm_cell = torch.ops.fastlstm.lstm_cell.default
