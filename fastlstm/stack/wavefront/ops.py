"""The custom ops of a stack of layers of one direction: `fastlstm::stack_forward` and
`stack_backward`, over the recurrence ops of the family they are given.

They are for devices where layers gain by running beside each other (plan.py); elsewhere, and
for two directions, there is an op for each layer (ops/layer.py). Both give the same numbers.

Arguments, T steps, N rows, I inputs, L layers, H units, P outputs: x (T, N, I), h0 (L, N, P), c0
(L, N, H); of each layer weight_ih (4H, I or P) and weight_hh (4H, P), and in lists that may be
empty bias_ih and bias_hh (4H,), weight_hr (P, H); lengths (N,) int64; reset_mask (T, N) bool;
dropout_masks, for each layer but the last or none, (T, N, P) bool, True where a number is kept;
dropout, the share that is dropped.
"""

import contextlib
import functools
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from ...ops import layer as layer_ops
from ...ops import transforms
from ...ops.library import (
    check_one_device,
    check_tape,
    differentiate_backward,
    library,
    outside_autocast,
)
from ...precision import accumulation_dtype
from ...reference import lstm as reference
from . import backward as stack_backward
from . import forward as stack
from . import lists
from . import plan as wavefront
from .backward import Wanted
from .forward import Dropout, Tape, Weights

library.define(
    "stack_forward(str family, Tensor x, Tensor h0, Tensor c0, Tensor[] weights_ih, "
    "Tensor[] weights_hh, Tensor[] biases_ih, Tensor[] biases_hh, Tensor[] weights_hr, "
    "Tensor? lengths, Tensor? reset_mask, Tensor[] dropout_masks, float dropout, bool save_tape, "
    "bool save_cells) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor[] hidden, "
    "Tensor[] lower_cells, Tensor[] gates)"
)
library.define(
    "stack_backward(str family, Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, "
    "Tensor x, Tensor h0, Tensor c0, Tensor[] weights_ih, Tensor[] weights_hh, "
    "Tensor[] weights_hr, Tensor output, Tensor cells, Tensor[] hidden, Tensor[] lower_cells, "
    "Tensor[] gates, Tensor? lengths, Tensor? reset_mask, Tensor[] dropout_masks, float dropout, "
    "int lowest, bool need_dx, bool[] need_dweights) "
    "-> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights_ih, Tensor[] dweights_hh, "
    "Tensor[] dbiases, Tensor[] dweights_hr)"
)


def _chunk(family, x, c0, weights_hr, lowest=0) -> int:
    sizes = (x.shape[0], x.shape[1], c0.shape[0] - lowest, c0.shape[2])
    return wavefront.chunk_steps(family, x.device, x.dtype, sizes, bool(weights_hr))


def _forward(
    family, x, h0, c0, weights_ih, weights_hh, biases_ih, biases_hh, weights_hr, lengths,
    reset_mask, dropout_masks, dropout, save_tape, save_cells,
):  # fmt: skip
    return stack.forward(
        getattr(torch.ops.fastlstm, f"{family}_forward").default, x, h0, c0,
        Weights(weights_ih, weights_hh, biases_ih, biases_hh, weights_hr), lengths, reset_mask,
        Dropout(dropout_masks, dropout), save_tape, save_cells,
        _chunk(family, x, c0, weights_hr),
    )  # fmt: skip


def _backward_parts(
    x, h0, c0, weights_ih, weights_hh, weights_hr, output, cells, hidden, lower_cells, gates,
    lengths, reset_mask, dropout_masks, dropout, lowest, need_dx, need_dweights,
):  # fmt: skip
    """The arguments of a backward from x on, as forward.py takes them."""
    return (
        x,
        h0,
        c0,
        Weights(weights_ih, weights_hh, [], [], weights_hr),
        Tape(output, cells, hidden, lower_cells, gates),
        lengths,
        reset_mask,
        Dropout(dropout_masks, dropout),
        Wanted(lowest, need_dx, [k for k, need in enumerate(need_dweights) if need]),
    )


def _backward(family, doutput, dh_n, dc_n, dcells, *rest):
    parts = _backward_parts(*rest)
    x, _, c0, weights = parts[:4]
    return stack_backward.backward(
        getattr(torch.ops.fastlstm, f"{family}_backward").default, doutput, dh_n, dc_n, dcells,
        *parts, _chunk(family, x, c0, weights.hr, parts[-1].lowest),
    )  # fmt: skip


def _forward_fake(
    family, x, h0, c0, weights_ih, weights_hh, biases_ih, biases_hh, weights_hr, lengths,
    reset_mask, dropout_masks, dropout, save_tape, save_cells,
):  # fmt: skip
    tensors_of = weights_ih, weights_hh, biases_ih, biases_hh, weights_hr, dropout_masks
    check_one_device(x, h0, c0, *(t for ts in tensors_of for t in ts), lengths, reset_mask)
    T, N, _ = x.shape
    L, _, H = c0.shape
    wide, below = accumulation_dtype(x.dtype), L - 1 if save_tape else 0
    cells = (T, N, 1, H)
    return (
        h0.new_empty((T, N, h0.shape[2])),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        h0.new_empty(cells if save_tape or save_cells else (0,), dtype=wide),
        [h0.new_empty((T, N, h0.shape[2])) for _ in range(below)],
        [h0.new_empty(cells, dtype=wide) for _ in range(below)],
        [h0.new_empty((T, N, 1, 4 * H)) for _ in range(L if save_tape else 0)],
    )


def _backward_fake(family, doutput, dh_n, dc_n, dcells, *rest):
    x, h0, c0, weights, tape, lengths, reset_mask, dropout, wanted = _backward_parts(*rest)
    tensors_of = *weights, *tape[2:], dropout.masks
    check_one_device(
        doutput, dh_n, dc_n, dcells, x, h0, c0, tape.output, tape.cells, lengths, reset_mask,
        *(t for ts in tensors_of for t in ts),
    )  # fmt: skip
    return stack_backward.empty_gradients(x, h0, c0, weights, wanted)


def _setup_forward(ctx, inputs, output):
    *layers, biases_ih, biases_hh, weights_hr = inputs[:9]
    *masks, save_tape, _ = inputs[9:]
    y, _, _, *tape = output
    lists.keep(ctx, (*layers, weights_hr, y, *tape, *masks))
    ctx.biases = len(biases_ih), len(biases_hh)
    ctx.has_tape = save_tape


_below_autograd = torch._C._AutoDispatchBelowAutograd


def _batched(grads) -> bool:
    """Whether vmap maps over any of them: torch.func's, or the older one of is_grads_batched."""
    functorch = torch._C._functorch
    return torch._C._are_functorch_transforms_active() or any(
        functorch.is_legacy_batchedtensor(g) for g in grads if g is not None
    )


def _layer_backward(family: str):
    """`layer_ops._backward` of a family as one op, for `plain_backward`."""
    op = getattr(torch.ops.fastlstm, f"{family}_layer_backward")
    return lambda doutput, dh_n, dc_n, dcells, _, *rest: op(doutput, dh_n, dc_n, dcells, *rest)


@outside_autocast
def _forward_gradients(ctx, needs, doutput, dh_n, dc_n, dcells, *of_tape) -> tuple:
    """The gradients of the forward's arguments x to weights_hr; `needs`: which are needed."""
    check_tape(ctx, "stack_forward")
    family, *kept = lists.kept(ctx)
    need_x, need_h0, need_c0, *need_weights = needs
    L = len(need_weights[0])
    need_dweights = [any(need[k] for need in need_weights if need) for k in range(L)]
    lowest = 0 if need_x or need_h0 or need_c0 else need_dweights.index(True)
    rest = *kept, lowest, need_x, need_dweights
    of_tape = [grads or [None] * L for grads in of_tape]
    plain = all(grad is None for grads in of_tape for grad in grads)
    if plain and not _batched((doutput, dh_n, dc_n, dcells)):
        with contextlib.nullcontext() if torch.is_grad_enabled() else _below_autograd():
            results = torch.ops.fastlstm.stack_backward.default(
                family, doutput, dh_n, dc_n, dcells, *rest
            )
    else:
        # Only a backward that was itself differentiated has gradients for the tape; compiled
        # kernels leave those to the reference. And vmap takes the op of a layer, but not one with
        # lists.
        rule = (
            _layer_backward(family)
            if plain
            else functools.partial(layer_ops._backward, torch.ops.fastlstm.reference_backward)
        )
        results = stack_backward.plain_backward(
            rule, doutput, dh_n, dc_n, dcells, of_tape, *_backward_parts(*rest)
        )
    dx, dh0, dc0, dwi, dwh, dbias, dwr = results
    # Both biases have the same gradient; they must not have the same memory.
    dbh = [d.clone() for d in dbias] if ctx.biases[1] else []
    grads = [dwi, dwh, dbias if ctx.biases[0] else [], dbh, dwr]
    return (
        dx if need_x else None,
        dh0 if need_h0 else None,
        dc0 if need_c0 else None,
        *(
            [g if n else None for g, n in zip(of_kind, need, strict=True)]
            for of_kind, need in zip(grads, need_weights, strict=True)
        ),
    )


def _forward_autograd(ctx, *grads):
    found = _forward_gradients(ctx, ctx.needs_input_grad[1:9], *grads)
    masks = ctx.needs_input_grad[11]
    return (None, *found, None, None, [None for _ in masks], None, None, None)


def _plain_rule(lengths, others):
    """`stack_backward` in plain torch, of its flattened arguments, those that are no tensors
    from `others`."""

    def rule(*flat):
        _, doutput, dh_n, dc_n, dcells, *rest = lists.unflatten(lists.merged(flat, others), lengths)
        parts = _backward_parts(*rest)
        none = [None] * len(parts[3].ih)
        of_tape = none, none, none
        results = stack_backward.plain_backward(
            functools.partial(layer_ops._backward, reference.lstm_backward),
            doutput,
            dh_n,
            dc_n,
            dcells,
            of_tape,
            *parts,
        )
        return lists.flatten(results)[0]

    return rule


def _backward_autograd(ctx, *grads):
    # To torch a list of tensors is many arguments, the list of bools, which is last, one.
    needs, _ = lists.flatten(ctx.needs_input_grad[:-1])
    count = len(needs)
    flat = SimpleNamespace(
        saved_tensors=ctx.saved_tensors[:count],
        scalars=ctx.others[count:],
        needs_input_grad=needs,
    )
    rule = _plain_rule(ctx.lengths, ctx.others)
    found = differentiate_backward(
        flat, lists.flatten(grads)[0], rule, count, len(ctx.others) - count
    )
    return *lists.unflatten(found[:count], ctx.lengths[:-1]), None


for _name, _impl, _fake in (
    ("stack_forward", _forward, _forward_fake),
    ("stack_backward", _backward, _backward_fake),
):
    library.impl(_name, outside_autocast(_impl), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=library)
torch.library.register_autograd(
    "fastlstm::stack_forward", _forward_autograd, setup_context=_setup_forward, lib=library
)
torch.library.register_autograd(
    "fastlstm::stack_backward",
    _backward_autograd,
    setup_context=lambda ctx, inputs, output: lists.keep(ctx, inputs),
    lib=library,
)


class _Stack(torch.autograd.Function):
    """The forward op with its autograd formula, at a tenth of the cost of the registered one: as
    `layer_ops.layer`."""

    @staticmethod
    def forward(ctx, lengths, *flat):
        arguments = lists.unflatten(flat, lengths)
        with _below_autograd():
            results = torch.ops.fastlstm.stack_forward.default(*arguments)
        _setup_forward(ctx, arguments, results)
        ctx.argument_lengths, ctx.result_lengths = lengths, lists.flatten(results)[1]
        return tuple(lists.flatten(results)[0])

    @staticmethod
    def backward(ctx, *grads):
        needs = lists.unflatten(ctx.needs_input_grad[1:], ctx.argument_lengths)[1:9]
        found = _forward_gradients(ctx, needs, *lists.unflatten(grads, ctx.result_lengths))
        flat = lists.flatten(found)[0]
        return (None, None, *flat, *[None] * (len(ctx.needs_input_grad) - 2 - len(flat)))


def takes(family: str, device: torch.device, weights: Sequence[Sequence[Tensor | None]]) -> bool:
    """Whether layers of one direction go by these ops. Not the CPU's compiled kernels, which have a
    layer's op of their own; not single layers, nor layers of which some lack a bias or a projection
    that others have.

    Args:
        weights: of each layer (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr).
    """
    if len(weights) == 1 or (family == "lstm" and device.type == "cpu"):
        return False
    if not wavefront.possible(family, device):
        return False
    if transforms.active():
        return False
    return all(
        (one is None) == (first is None)
        for layer in weights[1:]
        for one, first in zip(layer, weights[0], strict=True)
    )


def forward(arguments: tuple, save_tape: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """output, h_n, c_n and cells of `stack_forward` by the shortest way: `arguments` are its
    arguments, `save_tape` is the one of them."""
    op = torch.ops.fastlstm.stack_forward.default
    if torch.compiler.is_compiling():
        return op(*arguments)[:4]
    if save_tape:
        flat, lengths = lists.flatten(arguments)
        return _Stack.apply(lengths, *flat)[:4]
    with _below_autograd():
        return op(*arguments)[:4]
