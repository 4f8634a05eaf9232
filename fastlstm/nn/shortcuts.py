"""The shortest ways of a call: one op for the whole stack, where nothing else may stand between.
`None` says that the general way is to be taken.
"""

import torch
from torch import Tensor

from ..checks import check_lengths, check_reset_mask, may_look, swapped_states
from ..precision import wide_products
from ..stack import step as step_op
from ..stack import step_training, whole
from ..stack.alone import (
    BACKENDS,
    PLAIN_CLASSES,
    beside_each_other,
    needed,
    plainly_called,
    stands_alone,
)
from ..stack.between import dropping, noises
from . import int8_calls, weight_storage
from .arguments import has_hooks, state_widths, states_of, stored_weights, weights_of
from .variant_settings import PLAIN, is_plain, recurs_plainly

MOST_ROWS = 8  # of a step; with more, the general way's packed weights are faster

# Bound once: looking each up takes as long as asking it.
_is_grad_enabled = torch.is_grad_enabled
_NO_ZONEOUT = PLAIN["zoneout"]


def plain_inference(module, x, hx):
    """(output, (h_n, c_n)) of a FastLSTM's commonest short call: one layer of one direction, in
    evaluation, without a gradient, of float32 on the CPU, given x and perhaps hx. None for all
    other calls, and where the op does not take the arguments.

    It asks in one function what `whole_stack` and what stands before it ask in ten: these are a
    sixth of a call with T = 1 (benchmarks/log.md).
    """
    if (
        _is_grad_enabled()
        or not plainly_called(x)
        or not x.is_cpu
        or module.backend not in BACKENDS
        or x.dtype is not torch.float32
        or x.is_nested
        or module.training
        or module.num_layers != 1
        or module.bidirectional
        or module.layer_norm
        or module.zoneout != _NO_ZONEOUT
        or module.batch_first_states
        or module.return_layer_outputs
    ):
        return None
    h0 = c0 = None
    if hx is not None:
        if type(hx) is not tuple or len(hx) != 2:
            return None
        h0, c0 = hx
        if type(h0) not in PLAIN_CLASSES or type(c0) not in PLAIN_CLASSES:
            return None
    if module.weight_dtype is torch.int8:
        return int8_calls.plain_inference(module, x, h0, c0)
    weights = stored_weights(module, module._flat_weights_names)
    if weights is None or not PLAIN_CLASSES.issuperset(map(type, weights)):
        return None
    if weights[0].dtype is not (module.weight_dtype or torch.float32):
        return None
    run = whole.PAIRS["lstm"].forward
    try:
        results = run(x, h0, c0, weights, batch_first=True) if module.batch_first else run(x, h0, c0, weights)
    except RuntimeError:
        return None  # the longer way meets it again, and says it in torch's words
    if not results:
        return None
    output, h_n, c_n = results
    return output, (h_n, c_n)


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
    weights = stored_weights(module, module._flat_weights_names)
    if weights is None:
        return None  # so that what computes weights is asked once
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
    if not (isinstance(h, Tensor) and isinstance(c, Tensor)):
        return None
    if not weight_storage.fits(module, x_t, weights[0]):
        return None
    needs = needed(x_t, h, c, weights)
    if needs is None:
        return None
    if needs:
        result = _step_with_gradients(module, x_t, h, c, weights)
    elif x_t.dim() == 2 and x_t.shape[0] > MOST_ROWS:
        result = None
    else:
        result = step_op.lstm_step(x_t, h, c, weights)
    if not result:
        return None
    y, *states = result
    return y, swapped_states(states) if swap else tuple(states)


def _step_with_gradients(module, x: Tensor, h: Tensor, c: Tensor, weights: list):
    """The step with its gradients, layer by layer; None where the ops do not take the arguments."""
    layers = module.num_layers
    if any(s.shape[:1] != (layers,) for s in (h, c)):
        return None
    each, h_n, c_n = len(weights) // layers, [], []
    for k, (h_k, c_k) in enumerate(zip(h.unbind(), c.unbind(), strict=True)):
        ih, hh, *rest = weights[k * each : (k + 1) * each]
        biases = rest[:2] if module.bias else (None, None)
        of_layer = ih, hh, *biases, rest[-1] if each % 2 else None
        if not step_training.serves(x, of_layer):
            return None
        states = step_training.step(x, h_k, c_k, of_layer)
        if states is None:
            return None
        x, c_k = states
        h_n.append(x)
        c_n.append(c_k)
    # Stacked, for the output and the states share no memory.
    return x, torch.stack(h_n), torch.stack(c_n)


def whole_stack(module, pair, x: Tensor, hx, weights: list, lengths, reset_mask, cells: bool):
    """(output, (h_n, c_n)), and with `cells` the last layer's, of a FastLSTM's call by one op for
    all layers, or where a gradient is wanted by two; None where they do not serve or do not take
    the arguments. `pair` is `pair_for` x; `weights` are the module's, as they are named; the rest
    is as the caller has it.
    """
    if not recurs_plainly(module):
        return None
    if hx is None:
        h0 = c0 = None
    elif type(hx) not in (tuple, list) or len(hx) != 2:
        return None
    else:
        h0, c0 = hx
        if h0 is None:
            return None
    if lengths is not None and not _takes(lengths, x):
        return None
    if reset_mask is not None and not _plain(reset_mask, x):
        return None
    if not weight_storage.fits(module, x, weights[0]):
        return None
    needs = needed(x, h0, c0, weights)
    if needs is None:
        return None
    on_cpu = x.is_cpu and pair.prefix == "lstm"
    if module.weight_dtype is not None and (needs or not on_cpu):
        return None
    if needs and module.checkpoint_every is not None:
        return None
    L = module.num_layers
    if L > 1 and not (on_cpu or module.bidirectional):
        T, N = _steps_and_rows(module, x)
        if beside_each_other(pair, x, T, N, weights, L):
            return None
    options = {}
    if lengths is not None:
        options["lengths"] = lengths
    if reset_mask is not None:
        options["reset_mask"] = reset_mask
    if L > 1:
        options["layers"] = L
        if module.training and module.dropout:
            if not _fit(module, x, hx, weights, lengths, reset_mask):
                return None
            options["noise"] = _noise(module, x)
    if module.bidirectional:
        options["bidirectional"] = True
    if module.batch_first:
        options["batch_first"] = True
    if x.dtype is not torch.float32 and wide_products(x):
        options["wide_products"] = True
    if cells:
        options["save_cells"] = True
    results = whole.run(pair, needs, x, h0, c0, weights, options)
    if results is None:
        return None
    output, h_n, c_n, *more = results
    return (output, (h_n, c_n), *more) if more else (output, (h_n, c_n))


def _plain(mask, x: Tensor) -> bool:
    return type(mask) is Tensor and mask.device == x.device


def _takes(lengths, x: Tensor) -> bool:
    """Whether the op takes lengths. On the CPU it checks their values itself; on other devices the
    general way does, where they are to be checked."""
    fits = _plain(lengths, x) and lengths.dtype is torch.int64
    return fits and (x.is_cpu or not may_look(x.device))


def _fit(module, x: Tensor, hx, weights: list, lengths, reset_mask) -> bool:
    """Whether the arguments of a call fit each other, asked as the general way asks it, with its
    errors: before dropout is drawn, for an error is to leave torch's generator as it was."""
    if weights_of(module, x, None, weights) is None:
        return False
    T, N = _steps_and_rows(module, x)
    if hx is not None and states_of(module, hx, x, N if x.dim() == 3 else None, None) is None:
        return False
    if lengths is not None:
        check_lengths(lengths.view(1) if x.dim() == 2 and lengths.dim() == 0 else lengths, T, N, x.device)
    layout = "(T,)" if x.dim() == 2 else "(N, T)" if module.batch_first else "(T, N)"
    check_reset_mask(reset_mask, T, N, x.device, layout)
    return True


def _noise(module, x: Tensor) -> list[Tensor]:
    """What dropout multiplies the layers' outputs with, drawn as nn.LSTM draws it."""
    T, N = _steps_and_rows(module, x)
    between = dropping(module.dropout, module.variational_dropout)
    width = state_widths(module)[0] * (2 if module.bidirectional else 1)
    return noises(between, x.new_ones(T, N, width), module.num_layers - 1, module.dropout)


def _steps_and_rows(module, x: Tensor) -> tuple[int, int]:
    if x.dim() == 2:
        return x.shape[0], 1
    T, N = x.shape[:2]
    return (N, T) if module.batch_first else (T, N)
