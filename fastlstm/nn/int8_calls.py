"""Calls of modules with int8 weights: by one op for all layers where nothing else may stand
between, else by `stack.run.run_layers`. `None` says that the general way is to be taken.
"""

import torch
from torch import Tensor

from ..checks import check_pair, swapped_states
from ..precision import autocast_dtype, to_autocast
from ..stack.alone import PLAIN_CLASSES, needed, stands_alone
from ..stack.int8 import int8_call, refuse_gradients
from ..stack.run import run_layers
from . import int8_storage
from .arguments import has_hooks
from .variant_settings import is_plain

_FLOAT = torch.float32
_dispatch_modes = torch._C._len_torch_dispatch_stack


def wanted_dtype(module, device: torch.device) -> torch.dtype | None:
    """What autocast asks of a call; int8 modules compute in float32 there, and so do their results
    come."""
    wanted = autocast_dtype(device)
    return _FLOAT if wanted is not None and int8_storage.is_int8(module) else wanted


def _by_op(module, x: Tensor, state, options: dict) -> list[Tensor] | None:
    """What `int8_call` gives; None where it does not take the arguments, or torch's own tools look
    at each op, which know `int8_stack`."""
    if state is None:
        h0 = c0 = None
    elif type(state) not in (tuple, list) or len(state) != 2 or state[0] is None:
        return None
    else:
        h0, c0 = state
    try:
        weights = [*map(module._buffers.__getitem__, int8_storage.known_names(module))]
    except KeyError:
        return None
    needs = needed(x, h0, c0, weights)
    if needs is None or _dispatch_modes():
        return None
    if needs:
        refuse_gradients(input=x, h0=h0, c0=c0)
        return None
    if module.weight_only:
        options["weight_only"] = True
    return int8_call(x, h0, c0, weights, module.input_size, **options) or None


def plain_inference(module, x: Tensor, h0, c0):
    """What `shortcuts.plain_inference` gives, after what it asks."""
    try:
        weights = [*map(module._buffers.__getitem__, int8_storage.known_names(module))]
    except KeyError:
        return None
    if x.dim() not in (2, 3) or _dispatch_modes() or not PLAIN_CLASSES.issuperset(map(type, weights)):
        return None
    options = {"batch_first": True} if module.batch_first else {}
    if module.weight_only:
        options["weight_only"] = True
    results = int8_call(x, h0, c0, weights, module.input_size, **options)
    return (results[0], (results[1], results[2])) if results else None


def whole_stack(module, x: Tensor, hx, lengths, reset_mask, cells: bool):
    """(output, (h_n, c_n)), and with `cells` the last layer's; the arguments as the caller has them."""
    if not (stands_alone(x, module.backend) and is_plain(module)):
        return None
    options = {}
    if lengths is not None:
        if type(lengths) is not Tensor:
            return None
        options["lengths"] = lengths
    if reset_mask is not None:
        if type(reset_mask) is not Tensor:
            return None
        options["reset_mask"] = reset_mask
    if cells:
        options["return_cells"] = True
    if module.num_layers > 1:
        options["layers"] = module.num_layers
    if module.bidirectional:
        options["bidirectional"] = True
    if module.batch_first:
        options["batch_first"] = True
    results = _by_op(module, x, hx, options)
    if results is None:
        return None
    states = results[1], results[2]
    return (results[0], states, results[3]) if cells else (results[0], states)


def direct_step(module, x_t: Tensor, state):
    """One step: y and the new state."""
    if (
        not stands_alone(x_t, module.backend)
        or "forward" in module.__dict__
        or not is_plain(module)
        or has_hooks(module)
    ):
        return None
    swap = module.batch_first_states and x_t.dim() == 2
    if swap and state is not None:
        if type(state) not in (tuple, list) or any(not isinstance(s, Tensor) or s.dim() != 3 for s in state):
            return None
        state = swapped_states(state)
    results = _by_op(module, x_t, state, {"layers": module.num_layers, "step": True})
    if results is None:
        return None
    y, *states = results
    return y, swapped_states(states) if swap else tuple(states)


def direct_cell(module, input: Tensor, hx):
    """A call of a FastLSTMCell: (h, c)."""
    if not stands_alone(input, module.backend) or module.hidden_size == 0:
        return None
    states = _by_op(module, input, hx, {"cell": True})
    return states and tuple(states)


def cell(module, input: Tensor, hx):
    """A call of a FastLSTMCell: (h, c); None for what torch's own cell is to refuse."""
    dims, H = input.dim(), module.hidden_size
    if dims == 1 and isinstance(hx, Tensor) and hx.dim() == 2 and len(hx) == 2:
        hx = hx[0], hx[1]  # nn.LSTMCell takes such a tensor for unbatched input
    wanted = wanted_dtype(module, input.device)
    if wanted is not None:
        input = to_autocast(input, wanted)
    if dims not in (1, 2) or H == 0:
        return None
    layers = int8_storage.layers_for(module, input)
    if layers is None:
        return None
    x = input.view(1, 1, -1) if dims == 1 else input.unsqueeze(0)
    if hx is None:
        h = c = x.new_zeros(1, x.shape[1], H)
    else:
        check_pair("hx", hx)
        hx = [s if wanted is None else to_autocast(s, wanted) for s in hx]
        expected = (*input.shape[:-1], H)
        if any(s.shape != expected or s.dtype != _FLOAT or s.device != input.device for s in hx):
            return None
        h, c = (s.reshape(1, x.shape[1], H) for s in hx)
    options = {"backend": module.backend, "weight_only": module.weight_only}
    _, h, c, _ = run_layers(x, h, c, layers, own_output=False, **options)
    h, c = h.squeeze(0), c.squeeze(0)
    return (h.view(-1), c.view(-1)) if dims == 1 else (h, c)
