"""A step of a stream, `FastLSTM.step`, by the shortest way."""

import torch
from torch import Tensor

from . import step_op, weight_storage
from .arguments import has_hooks, reads_plainly, state_widths, weights_by_name
from .variant_settings import is_plain


def direct_step(module, x_t: Tensor, state):
    """The step as one op, where nothing else may stand between: no hook, no other forward,
    no variant, no dropout. None where the op does not serve or does not take the arguments.
    """
    if (
        torch.compiler.is_compiling()
        or type(x_t) is not Tensor
        or "forward" in module.__dict__
        or not is_plain(module)
        or has_hooks(module)
    ):
        return None
    names = module._flat_weights_names
    if torch.is_grad_enabled() and not reads_plainly(module, names):
        return None  # so that what computes weights is asked once
    weights = weights_by_name(module, names)
    if state is None:
        lead = (module.num_layers, *x_t.shape[:-1])
        state = (x_t.new_zeros(*lead, width) for width in state_widths(module))
    elif type(state) not in (tuple, list) or len(state) != 2:
        return None
    h, c = state
    if not step_op.serves(x_t, (h, c), weights, module.backend):
        return None
    if not weight_storage.fits(module, x_t, weights[0]):
        return None
    if x_t.dim() == 2 and x_t.shape[0] > step_op.MOST_ROWS:
        return None
    try:
        y, h_n, c_n = step_op.lstm_step(x_t, h, c, weights)
    except RuntimeError:  # what does not fit: the general way says so
        return None
    return y, (h_n, c_n)
