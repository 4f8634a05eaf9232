"""The custom op of a whole stack without a gradient, `lstm_inference`: on the CPU, beside a short
sequence's work, a call of an op for each layer and what Python does around it is most of the time.

x (T, N, I), (N, T, I) with batch_first, or (T, I) unbatched; h0 (L*D, N, P), c0 (L*D, N, H),
without the N where x has none, or None for zeros. weights: of each layer and direction weight_ih
(4H, inputs), weight_hh (4H, P), both biases (4H,) or neither, weight_hr (P, H) or not; the matrices
may be bfloat16 beside float32. The op checks shapes and dtypes itself; what it refuses, the general
way takes, or refuses in nn.LSTM's words.
"""

import torch
from torch import Tensor

from . import functional, step_op, training_op, weight_storage
from .ops import check_one_device, library
from .variant_settings import is_plain

_SCHEMA = (
    "lstm_inference(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, int layers, "
    "bool bidirectional, bool batch_first, bool wide_products) "
    "-> (Tensor output, Tensor h_n, Tensor c_n)"
)


def _fake(x, h0, c0, weights, layers, bidirectional, batch_first, wide_products):
    check_one_device(x, h0, c0, *weights)
    D = 2 if bidirectional else 1
    H, P = weights[1].shape[0] // 4, weights[1].shape[1]
    if x.dim() == 2:
        rows, output = (), x.new_empty((x.shape[0], D * P))
    else:
        T, N = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
        rows, output = (N,), x.new_empty((T, N, D * P))
        output = output.transpose(0, 1) if batch_first else output
    return output, x.new_empty((layers * D, *rows, P)), x.new_empty((layers * D, *rows, H))


library.define(_SCHEMA)
torch.library.register_fake("fastlstm::lstm_inference", _fake, lib=library)

_lstm_inference = torch.ops.fastlstm.lstm_inference.default


def whole_stack(module, x: Tensor, hx, weights: list):
    """(output, (h_n, c_n)) of a FastLSTM's call by this op, or where a gradient is wanted by those
    of training_op.py; None where they do not serve or do not take the arguments. `weights` are the
    module's, as they are named."""
    if not (is_plain(module) and step_op.stands_alone(x, module.backend)):
        return None
    if hx is None:
        hx = None, None
    elif type(hx) not in (tuple, list) or len(hx) != 2 or hx[0] is None or hx[1] is None:
        return None
    if not weight_storage.fits(module, x, weights[0]):
        return None
    if step_op.differentiated(x, hx, weights):
        return training_op.whole_stack(module, x, hx, weights)
    sizes = module.num_layers, module.bidirectional, module.batch_first
    try:
        output, h_n, c_n = _lstm_inference(x, *hx, weights, *sizes, functional.wide_products(x))
    except RuntimeError:  # what does not fit: the general way says so
        return None
    return output, (h_n, c_n)
