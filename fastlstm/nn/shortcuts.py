"""The shortest ways of a call: one op for the whole stack on the CPU, where nothing else may stand
between. `None` says that the general way is to be taken.
"""

import torch
from torch import Tensor, nn

from ..backends import native
from ..checks import swapped_states
from ..ops import transforms
from ..precision import wide_products
from ..stack import step as step_op
from ..stack import step_training, whole
from . import weight_storage
from .arguments import has_hooks, reads_plainly, state_widths, weights_by_name
from .variant_settings import is_plain

MOST_ROWS = 8  # of a step; with more, the general way's packed weights are faster
_PLAIN = {Tensor, nn.Parameter, type(None)}
_BACKENDS = ("auto", "cpu") if native.load() is None else ()
# Bound once: looking each up takes as long as asking it.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch._C._is_any_autocast_enabled
_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack


def stands_alone(x, backend: str) -> bool:
    """Whether ops of a whole call may stand for the general way: on the CPU, and nothing traced,
    transformed or cast."""
    return not (
        _is_compiling()
        or type(x) is not Tensor
        or backend not in _BACKENDS
        or not x.is_cpu
        or _is_autocast_enabled()
        or transforms.active()
        or _tracing_state() is not None
    )


def differentiated(x, state: tuple, weights: list) -> bool:
    if not _is_grad_enabled():
        return False
    given = (x, *state, *weights)
    return any(isinstance(t, Tensor) and t.requires_grad for t in given)


def direct_step(module, x_t: Tensor, state):
    """The step by the ops that take the weights as they lie, where nothing else may stand between:
    no hook, no other forward, no variant, no dropout. None where the ops do not serve or do not
    take the arguments.
    """
    if (
        not stands_alone(x_t, module.backend)
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
    swap = module.batch_first_states and x_t.dim() == 2
    if swap and isinstance(state, (tuple, list)):
        if any(not isinstance(s, Tensor) or s.dim() != 3 for s in state):
            return None
        state = swapped_states(state)
    h, c = state
    if not weight_storage.fits(module, x_t, weights[0]):
        return None
    try:
        if differentiated(x_t, (h, c), weights):
            result = _step_with_gradients(module, x_t, h, c, weights)
        elif x_t.dim() == 2 and x_t.shape[0] > MOST_ROWS:
            result = None
        else:
            result = step_op.lstm_step(x_t, h, c, weights)
    except RuntimeError:  # what does not fit: the general way says so
        return None
    if result is None:
        return None
    y, *states = result
    return y, swapped_states(states) if swap else tuple(states)


def _step_with_gradients(module, x: Tensor, h: Tensor, c: Tensor, weights: list):
    """The step with its gradients, layer by layer."""
    layers = module.num_layers
    if any(type(s) is not Tensor or s.shape[:1] != (layers,) for s in (h, c)):
        return None
    each, h_n, c_n = len(weights) // layers, [], []
    for k, (h_k, c_k) in enumerate(zip(h.unbind(), c.unbind(), strict=True)):
        ih, hh, *rest = weights[k * each : (k + 1) * each]
        of_layer = (
            ih,
            hh,
            *(rest[:2] if module.bias else (None, None)),
            rest[-1] if each % 2 else None,
        )
        if not step_training.serves(x, h_k, c_k, of_layer):
            return None
        x, c_k = step_training.step(x, h_k, c_k, of_layer)
        h_n.append(x)
        c_n.append(c_k)
    # Stacked, for the output and the states share no memory.
    return x, torch.stack(h_n), torch.stack(c_n)


def whole_stack(module, x: Tensor, hx, weights: list):
    """(output, (h_n, c_n)) of a FastLSTM's call by one op for all layers, or where a gradient is
    wanted by two; None where they do not serve or do not take the arguments. `weights` are the
    module's, as they are named."""
    if not (is_plain(module) and stands_alone(x, module.backend)):
        return None
    if hx is None:
        hx = None, None
    elif type(hx) not in (tuple, list) or len(hx) != 2 or hx[0] is None or hx[1] is None:
        return None
    if not weight_storage.fits(module, x, weights[0]):
        return None
    if differentiated(x, hx, weights):
        return whole_stack_with_gradients(module, x, hx, weights)
    sizes = module.num_layers, module.bidirectional, module.batch_first
    try:
        output, h_n, c_n = whole.lstm_inference(x, *hx, weights, *sizes, wide_products(x))
    except RuntimeError:  # what does not fit: the general way says so
        return None
    return output, (h_n, c_n)


def whole_stack_with_gradients(module, x: Tensor, hx, weights: list):
    """(output, (h_n, c_n)) of a FastLSTM's call by `whole.Layers`, where neither is differentiated,
    traced or cast otherwise than autograd does; None where they do not serve or do not take the
    arguments.

    Args:
        hx: (h0, c0) or (None, None).
    """
    if module.checkpoint_every is not None or _dispatch_modes():
        return None
    if not _PLAIN.issuperset(map(type, (*hx, *weights))):
        return None
    sizes = module.num_layers, module.bidirectional, module.batch_first, wide_products(x)
    try:
        output, h_n, c_n, *_ = whole.Layers.apply(sizes, x, *hx, *weights)
    except RuntimeError:  # what does not fit: the general way says so
        return None
    return output, (h_n, c_n)
