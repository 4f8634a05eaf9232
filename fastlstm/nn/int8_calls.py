"""Calls of modules with int8 weights: by one op for all layers where nothing else may stand
between, else by `stack.run.run_layers`. `None` says that the general way is to be taken.
"""

import torch
from torch import Tensor

from ..checks import check_pair, swapped_states
from ..precision import autocast_dtype, to_autocast
from ..stack.alone import stands_alone
from ..stack.int8 import int8_stack, refuse_gradients
from ..stack.run import run_layers
from . import int8_storage
from .arguments import has_hooks, state_widths
from .variant_settings import is_plain

_below_autograd = torch._C._AutoDispatchBelowAutograd
_is_grad_enabled = torch.is_grad_enabled
_FLOAT = torch.float32


def wanted_dtype(module, device: torch.device) -> torch.dtype | None:
    """What autocast asks of a call; int8 modules compute in float32 there, and so do their results
    come."""
    wanted = autocast_dtype(device)
    return _FLOAT if wanted is not None and int8_storage.is_int8(module) else wanted


def _stack(module, x: Tensor, h0, c0, batch_first: bool):
    """One call of the op, of arguments that fit."""
    if _is_grad_enabled():
        refuse_gradients(input=x, h0=h0, c0=c0)
    buffers = module._buffers
    try:
        weights = [buffers[name] for name in int8_storage.known_names(module)]
    except KeyError:
        return None
    if weights[1].device != x.device:
        return None
    with _below_autograd():
        return int8_stack(
            x, h0, c0, weights, module.num_layers, module.bidirectional, batch_first, None, None,
            module.weight_only, False,
        )  # fmt: skip


def _fits(module, x: Tensor, h0, c0, rows: tuple) -> bool:
    """Whether x, and the states where there are any, are what the op takes."""
    if x.dtype is not _FLOAT or x.shape[-1] != module.input_size:
        return False
    if h0 is None:
        return c0 is None
    if type(h0) is not Tensor or type(c0) is not Tensor:
        return False
    P, H = state_widths(module)
    lead = (module.num_layers * (2 if module.bidirectional else 1), *rows)
    return (
        h0.shape == (*lead, P)
        and c0.shape == (*lead, H)
        and h0.dtype is _FLOAT
        and c0.dtype is _FLOAT
        and h0.device == x.device == c0.device
    )


def whole_stack(module, x: Tensor, hx):
    """(output, (h_n, c_n)) of a call without lengths and masks."""
    if not (stands_alone(x, module.backend) and is_plain(module)):
        return None
    if hx is None:
        hx = None, None
    elif type(hx) not in (tuple, list) or len(hx) != 2 or hx[0] is None or hx[1] is None:
        return None
    rows = () if x.dim() == 2 else (x.shape[0 if module.batch_first else 1],)
    if not _fits(module, x, *hx, rows):
        return None
    result = _stack(module, x, *hx, module.batch_first)
    return result and (result[0], (result[1], result[2]))


def direct_step(module, x_t: Tensor, state):
    """One step: y and the new state."""
    if (
        not stands_alone(x_t, module.backend)
        or "forward" in module.__dict__
        or not is_plain(module)
        or has_hooks(module)
    ):
        return None
    if state is None:
        state = None, None
    elif type(state) not in (tuple, list) or len(state) != 2:
        return None
    swap = module.batch_first_states and x_t.dim() == 2 and state[0] is not None
    if swap:
        if any(not isinstance(s, Tensor) or s.dim() != 3 for s in state):
            return None
        state = swapped_states(state)
    rows = x_t.shape[:-1]
    if not _fits(module, x_t, *state, rows):
        return None
    result = _stack(module, x_t.unsqueeze(0), *state, False)
    if result is None:
        return None
    y, h, c, _ = result
    swap = module.batch_first_states and x_t.dim() == 2
    return y.squeeze(0), swapped_states((h, c)) if swap else (h, c)


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
    _, h, c, _ = run_layers(
        x,
        h,
        c,
        layers,
        lengths=None,
        reset_mask=None,
        return_cells=False,
        between_layers=None,
        dropout=0.0,
        backend=module.backend,
        own_output=False,
        weight_only=module.weight_only,
    )
    h, c = h.squeeze(0), c.squeeze(0)
    return (h.view(-1), c.view(-1)) if dims == 1 else (h, c)
