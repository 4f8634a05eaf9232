"""The weights and states of a FastLSTM's call, checked against its input."""

import torch
from torch import Tensor, nn

from ..checks import check_states, check_tensor
from ..precision import to_autocast
from ..weights import BESIDE, LSTMWeights
from . import int8_storage

_is_compiling = torch.compiler.is_compiling


def weights_of(
    module: nn.LSTM, x: Tensor, wanted: torch.dtype | None, values: list | None = None
) -> list[list[LSTMWeights]] | None:
    """The weights [layer][direction], `Int8Weights` where stored in int8; None if `x` does not fit
    them, for which nn.LSTM's own call raises the error. Raises ValueError for weights that do not
    fit each other: nn.LSTM would read out of bounds.

    They are looked up by name at every call, since wrappers, parametrizations and functional_call
    replace them. values: the weights, if they have been looked up already.
    """
    H, D, inputs = module.hidden_size, 2 if module.bidirectional else 1, module.input_size
    P, dtype, device = module.proj_size or H, x.dtype, x.device
    if module.weight_dtype is torch.int8:
        return int8_storage.layers_for(module, x)
    stored = module.weight_dtype if wanted is None else None
    if x.shape[-1] != inputs:
        return None
    shapes = [(4 * H, inputs), (4 * H, P)]
    if module.bias:
        shapes += [(4 * H,), (4 * H,)]
    if module.proj_size:
        shapes.append((P, H))
    weights, names = [], module._flat_weights_names
    if values is None:
        values = weights_by_name(module, names)
    for k in range(0, len(names), len(shapes)):
        if k == D * len(shapes):
            shapes[0] = (4 * H, D * P)
        found = values[k : k + len(shapes)]
        first = found[0]
        if k == 0 and first is not None:
            if first.device != device:
                return None
            # nn.LSTM checks this too, but not while autocast is on for any device.
            fitting = first.dtype == dtype if stored is None else dtype == BESIDE
            if not fitting and not torch._C._is_any_autocast_enabled():
                return None
        if wanted is not None:
            found = [to_autocast(w, wanted) for w in found]
        for place, (w, shape) in enumerate(zip(found, shapes, strict=True)):
            if w is None or w.dtype != dtype or w.shape != shape or w.device != device:
                as_stored = w is not None and w.dtype == stored and len(shape) == 2
                like = x.new_empty(0, dtype=stored) if as_stored else x
                check_tensor(names[k + place], w, shape, like)
        biases = found[2:4] if module.bias else (None, None)
        weights.append(LSTMWeights(*found[:2], *biases, found[-1] if module.proj_size else None))
    return [weights[k : k + D] for k in range(0, len(weights), D)]


_Module = nn.Module
_getattribute = object.__getattribute__
# Classes without attributes of the weights' names: `stored_weights` need not look for them.
without_weight_names: set[type] = set()


def stored_weights(module: nn.Module, names) -> list | None:
    """The parameters of these names, or None unless getattr returns exactly these: there is no
    attribute of the instance (as pruning sets) or of its class (as parametrizations define), and
    the class looks up attributes as nn.Module does (Pyro's does not). nn.Module.__getattr__ is
    slower by several times."""
    cls = type(module)
    if not (
        cls in without_weight_names
        or (
            cls.__getattr__ is _Module.__getattr__
            and cls.__getattribute__ is _getattribute
            and not any(hasattr(cls, name) for name in names)
        )
    ):
        return None
    attributes = module.__dict__
    if not attributes.keys().isdisjoint(names):
        return None
    try:
        return [*map(attributes["_parameters"].__getitem__, names)]
    except KeyError:
        return None


def weights_by_name(module: nn.Module, names, alone: bool = False) -> list:
    """The weights of these names as getattr returns them, unchecked. alone: nothing traces or
    compiles the call, as `stack.alone` has found."""
    weights = None
    if alone or not _is_compiling():
        weights = stored_weights(module, names)
    return [getattr(module, name) for name in names] if weights is None else weights


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks besides its forward."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or nn.modules.module._has_any_global_hook()
    )


def state_widths(module: nn.LSTM) -> tuple[int, int]:
    return module.proj_size or module.hidden_size, module.hidden_size


def state_shapes(module: nn.LSTM, N: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    return (rows, N, module.proj_size or module.hidden_size), (rows, N, module.hidden_size)


def zero_states(module: nn.LSTM, x: Tensor, N: int) -> tuple[Tensor, Tensor]:
    h_shape, c_shape = state_shapes(module, N)
    c0 = x.new_zeros(c_shape)
    return c0 if h_shape == c_shape else x.new_zeros(h_shape), c0


def states_of(module: nn.LSTM, hx, x, N, wanted) -> tuple[Tensor, Tensor] | None:
    """hx as (L*D, N, P), (L*D, N, H); N is None for unbatched states.

    None if it does not fit and nn.LSTM's own call raises the error; ValueError for other misfits.
    """
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        return None
    h0, c0 = hx
    h_shape, c_shape = state_shapes(module, 1 if N is None else N)
    if h0 is not None and c0 is not None:
        if not (isinstance(h0, Tensor) and isinstance(c0, Tensor)):
            return None
        if wanted is not None:
            h0, c0 = to_autocast(h0, wanted), to_autocast(c0, wanted)
        if N is None:
            if h0.dim() != 2 or c0.dim() != 2:
                return None
            h0, c0 = h0.unsqueeze(1), c0.unsqueeze(1)
        if h0.shape != h_shape or c0.shape != c_shape:
            return None
        if h0.device != x.device or c0.device != x.device:
            return None
        if h0.dtype == x.dtype and c0.dtype == x.dtype:
            return h0, c0
    check_states((h0, c0), h_shape, c_shape, x)
