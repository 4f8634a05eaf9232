"""The forms of a FastLSTM's input, padded, packed or nested: converts it to time-major tensors for
`stack.run.run_layers`, and the results back to its layout. `module` is the FastLSTM.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..checks import (
    check_lengths,
    check_pair,
    check_reset_mask,
    check_states,
    layers_first,
    swapped_states,
)
from ..precision import to_autocast
from ..stack.alone import pair_for
from ..stack.between import variational
from ..stack.run import run_layers
from ..torch_classes import LSTM
from . import int8_calls, nested
from .arguments import state_shapes, states_of, weights_by_name, weights_of, zero_states
from .packing import packing_of
from .shortcuts import whole_stack
from .torch_tools import proxies, trace_as_leaf
from .variant_settings import refuse_variants, variant_of


def call(module, input, hx, lengths, reset_mask, return_cell_sequence):
    """The result of `FastLSTM.forward`."""
    swap = module.batch_first_states and not proxies(input, hx)
    N = _rows(module, input) if swap else None
    if N is None:
        return _call(module, input, hx, lengths, reset_mask, return_cell_sequence)
    if hx is not None:
        hx = layers_first(hx, *state_shapes(module, N))
    output, states, *more = _call(module, input, hx, lengths, reset_mask, return_cell_sequence)
    return output, swapped_states(states), *more


def _rows(module, input) -> int | None:
    """N of a call, None if the input has no batch dimension."""
    if isinstance(input, PackedSequence):
        return int(input.batch_sizes[0])
    if nested.is_nested(input):
        return input.shape[0]
    return input.shape[0 if module.batch_first else 1] if input.dim() == 3 else None


def _call(module, input, hx, lengths, reset_mask, return_cell_sequence):
    if type(input) is not Tensor or input.is_nested:
        given = hx, lengths, reset_mask, return_cell_sequence
        if isinstance(input, PackedSequence):
            return _call_packed(module, input, *given)
        if proxies(input):
            return _trace(module, input, *given)
        if nested.is_nested(input):
            return _call_nested(module, input, *given)
    return _call_padded(module, input, hx, lengths, reset_mask, return_cell_sequence)


def _call_padded(module, input, hx, lengths, reset_mask, return_cell_sequence):
    dims = input.dim()
    if dims == 2 and isinstance(hx, Tensor) and hx.dim() == 3 and len(hx) == 2:
        hx = hx[0], hx[1]  # nn.LSTM accepts such a tensor for unbatched input
    int8, values = module.weight_dtype is torch.int8, None
    if not int8:
        pair = pair_for(input, module.backend)
        values = weights_by_name(module, module._flat_weights_names, alone=pair is not None)
        if pair is not None and dims in (2, 3) and not module.return_layer_outputs:
            result = whole_stack(module, pair, input, hx, values, lengths, reset_mask, return_cell_sequence)
            if result is not None:
                return result
    if int8 and dims in (2, 3) and not module.return_layer_outputs:
        result = int8_calls.whole_stack(module, input, hx, lengths, reset_mask, return_cell_sequence)
        if result is not None:
            return result
    plain = lengths is None and reset_mask is None and not return_cell_sequence and not module.return_layer_outputs
    if dims not in (2, 3) or (plain and torch.jit.is_tracing() and not int8):
        # So that a trace has torch's own op, which runs and exports without fastlstm.
        return _as_torch(module, input, hx, plain)
    wanted = int8_calls.wanted_dtype(module, input.device)
    x = input if wanted is None else to_autocast(input, wanted)
    layers = weights_of(module, x, wanted, values)
    if layers is None:
        return _as_torch(module, input, hx, plain)
    layout = "(T, N)"
    if dims == 2:
        x, layout = x.unsqueeze(1), "(T,)"
    elif module.batch_first:
        x, layout = x.transpose(0, 1), "(N, T)"
    T, N, _ = x.shape
    if hx is None:
        h0, c0 = zero_states(module, x, N)
    else:
        states = states_of(module, hx, x, N if dims == 3 else None, wanted)
        if states is None:
            if proxies(hx):
                return _trace(module, input, hx, lengths, reset_mask, return_cell_sequence)
            return _as_torch(module, input, hx, plain)
        h0, c0 = states
    if lengths is not None:
        if dims == 2 and isinstance(lengths, Tensor) and lengths.dim() == 0:
            lengths = lengths.unsqueeze(0)
        lengths = check_lengths(lengths, T, N, x.device)
    if reset_mask is not None:
        reset_mask = check_reset_mask(reset_mask, T, N, x.device, layout)
    output, states, *more = _run(module, x, h0, c0, layers, lengths, reset_mask, return_cell_sequence, wanted)
    if dims == 2:
        states = [s.squeeze(1) for s in states]
        return _laid_out(lambda s: s.squeeze(1), output, states, *more)
    if module.batch_first:
        return _laid_out(lambda s: s.transpose(0, 1), output, states, *more)
    return _laid_out(lambda s: s, output, states, *more)


def _call_packed(module, input, hx, lengths, reset_mask, return_cell_sequence):
    _refuse_lengths(lengths, "PackedSequence")
    data, batch_sizes, sorted_indices, unsorted_indices = input
    packing = packing_of(input)
    wanted = int8_calls.wanted_dtype(module, data.device)
    if wanted is not None:
        data = to_autocast(data, wanted)
    layers = weights_of(module, data, wanted)
    if layers is None or data.dim() != 2:
        # nn.LSTM does not check this, and for some of it reads out of bounds.
        module.check_input(data, batch_sizes)
        raise ValueError(
            f"input: got a PackedSequence of data on {data.device} and of {data.dtype}, "
            f"expected those of the weights, {module._flat_weights[0].device} and "
            f"{module._flat_weights[0].dtype}"
        )
    states = _checked_states(module, hx, data, packing.N, wanted)
    h0, c0 = states if hx is None else module.permute_hidden(states, sorted_indices)
    plain = reset_mask is None and not (return_cell_sequence or module.return_layer_outputs)
    if torch.jit.is_tracing() and plain:
        return _as_torch(module, input, hx, True)
    if reset_mask is not None:
        layout = "(N, T)" if module.batch_first else "(T, N)"
        reset_mask = check_reset_mask(reset_mask, packing.T, packing.N, data.device, layout)
        if sorted_indices is not None:
            reset_mask = reset_mask.index_select(1, sorted_indices)
    lengths = None if packing.lengths is None else packing.lengths.to(data.device)
    output, states, *more = _run(
        module,
        packing.pad(data),
        h0,
        c0,
        layers,
        lengths,
        reset_mask,
        return_cell_sequence,
        wanted,
        packing,
        sorted_indices,
    )

    def pack(sequence):
        return PackedSequence(packing.pack(sequence), batch_sizes, sorted_indices, unsorted_indices)

    return _laid_out(pack, output, module.permute_hidden(states, unsorted_indices), *more)


def _checked_states(module, hx, data, N, wanted):
    """hx, checked, or zeros, for data (S, I) of N rows."""
    if hx is None:
        return zero_states(module, data, N)
    if wanted is not None and isinstance(hx, (tuple, list)):
        hx = [to_autocast(s, wanted) for s in hx]
    check_states(hx, *state_shapes(module, N), data)
    return hx


def _call_nested(module, input, hx, lengths, reset_mask, return_cell_sequence):
    _refuse_lengths(lengths, "NestedTensor")
    packing = nested.jagged_of(input)
    values = input.values()
    wanted = int8_calls.wanted_dtype(module, values.device)
    if wanted is not None:
        values = to_autocast(values, wanted)
    layers = weights_of(module, values, wanted)
    if layers is None:
        first = module._flat_weights[0]
        raise ValueError(
            f"input: got a NestedTensor of {values.shape[1]} features, {values.dtype}, on "
            f"{values.device}, expected {module.input_size}, {first.dtype}, on {first.device}"
        )
    h0, c0 = _checked_states(module, hx, values, packing.N, wanted)
    if reset_mask is not None and nested.is_nested(reset_mask):
        reset_mask = packing.pad(nested.mask_values(reset_mask, input))
    elif reset_mask is not None:
        sizes = packing.T, packing.N, values.device, "(N, T)"
        reset_mask = check_reset_mask(reset_mask, *sizes)
    output, states, *more = _run(
        module,
        packing.pad(values),
        h0,
        c0,
        layers,
        packing.lengths,
        reset_mask,
        return_cell_sequence,
        wanted,
        packing,
    )
    return _laid_out(lambda s: nested.like(input, packing.pack(s)), output, states, *more)


def _laid_out(layout, output, states, cells, lower):
    """The results of a call, with `layout` applied to every sequence.

    Args:
        cells, lower: the last layer's cells, and the outputs of the layers below it, time-major;
        None where not asked for.
    """
    output = layout(output)
    results = output, tuple(states)
    if cells is not None:
        results += (layout(cells),)
    if lower is not None:
        results += ((*[layout(y) for y in lower], output),)
    return results


def _run(module, x, h0, c0, layers, lengths, reset_mask, cells, wanted, packing=None, order=None):
    """`stack.run.run_layers` with this module's dropout and backend, outside autocast, on
    time-major tensors. order: (N,), the user's row for each row of x; None if the order is the
    same.
    """
    between = None
    if module.training and module.dropout and len(layers) > 1:

        def between(y):
            if module.variational_dropout:
                return variational(y, module.dropout, order)
            if packing is None:
                return F.dropout(y, module.dropout)
            # nn.LSTM draws its mask for the packed rows; the same seed must give the same mask.
            return packing.pad(F.dropout(packing.pack(y), module.dropout))

    guard = contextlib.nullcontext() if wanted is None else torch.autocast(x.device.type, enabled=False)
    lower = [] if module.return_layer_outputs else None
    with guard:
        output, h_n, c_n, cells = run_layers(
            x,
            h0,
            c0,
            layers,
            lengths=lengths,
            reset_mask=reset_mask,
            return_cells=cells,
            between_layers=between,
            dropout=module.dropout,
            backend=module.backend,
            variant=variant_of(module, x, wanted),
            checkpoint_every=module.checkpoint_every,
            layer_outputs=lower,
            own_output=packing is None or packing.index is None,  # otherwise packing copies them
            weight_only=module.weight_only,
        )
    return output, (h_n, c_n), cells, lower


def _refuse_lengths(lengths, beside: str) -> None:
    if lengths is not None:
        raise ValueError(f"lengths: got a tensor beside a {beside}, which has lengths of its own; give one of them")


def _as_torch(module, input, hx, plain: bool):
    """Calls nn.LSTM's own forward, which raises its own error for arguments that do not fit; if it
    accepts them, returns its result.
    """
    if hx is not None and input.dim() in (2, 3):
        # While tracing, torch's op comes next, which relies on a pair of tensors.
        check_pair("hx", hx)
    result = LSTM.forward(module, input, hx)
    if module.weight_dtype is torch.int8:
        raise ValueError(
            "input: with weight_dtype=torch.int8 a FastLSTM does not take these arguments; "
            "weight_dtype = None widens the weights, for which nn.LSTM does"
        )
    if plain:
        if module.training or module.layer_norm or any(module.zoneout):
            # batch_first_states is possible: states are transposed before and after torch's op.
            refuse_variants(module, "torch.jit.trace", but="batch_first_states")
        return result
    raise ValueError(
        "input: fastlstm does not take these arguments, and nn.LSTM, which does, has no "
        "lengths, reset_mask, return_cell_sequence or return_layer_outputs; leave those out"
    )


def _trace(module, input, hx, lengths, reset_mask, return_cell_sequence):
    given = {"lengths": lengths, "reset_mask": reset_mask}
    given = {name: value for name, value in given.items() if value is not None}
    if return_cell_sequence is not False:
        given["return_cell_sequence"] = return_cell_sequence
    return trace_as_leaf(module, (input,) if hx is None else (input, hx), given)
