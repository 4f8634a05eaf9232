"""A whole stack and its gradients as a pair of ops on the CPU and on CUDA, `lstm_stack_forward`
and `lstm_stack_backward`: beside a short sequence's work, an op and a node of autograd for each
layer, and what stands around them in Python, are most of a call.

x (T, N, I), (N, T, I) with batch_first, or (T, I) unbatched; h0 (L*D, N, P), c0 (L*D, N, H),
without the N where x has none, or None for zeros. weights: of each layer and direction weight_ih
(4H, inputs), weight_hh (4H, P), both biases (4H,) or neither, weight_hr (P, H) or not; the matrices
may be bfloat16 beside float32 where no gradient is wanted. lengths (N,) int64; reset_mask bool,
laid out like x. noise: what dropout multiplies each layer's output with but the last's, (T, N, D*P)
for each, on CUDA also as masks and a scale (between.noises); or None. needs: for x, h0, c0 and
every weight whether its gradient is wanted, None for none.

The forward gives output, h_n, c_n; with save_cells the last layer's cells (T, N, D*H), laid out
like the output; where gradients are wanted the tape: of each layer from the lowest with a gradient
to give, its input before dropout (except the first layer's), cells (T, N, D, H) and gates (T, N, D,
4H), all time-major; and with own_output the output once more, which nobody else writes into. It
gives nothing at all where its arguments do not fit each other: the general way then says so in
nn.LSTM's words. The backward takes of each layer on the tape the matrices, all weight_ih, then all
weight_hh, then all weight_hr, and gives the gradients that `needs` asks for, in its order.

What is differentiated again, or mapped by vmap, goes back layer by layer (whole_by_layers.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..fields import joined
from ..ops import transforms
from ..ops.define import define_op
from ..ops.library import below_autograd, plain_apply, unwrapped
from ..precision import accumulation_dtype
from ..reference.backward import ResultGrads
from .whole_by_layers import Saved, by_layers


class Pair(NamedTuple):
    """The ops for a whole stack that go with the recurrence ops of a prefix (ops/recurrence.py)."""

    prefix: str
    forward: Callable
    backward: Callable


# Bound once: looking each up takes as long as asking it.
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_is_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_compiling
_NONE = {None}


class _Sequence(NamedTuple):
    """What both ops get beside tensors with gradients."""

    lengths: Tensor | None = None
    reset_mask: Tensor | None = None
    noise: list[Tensor] | None = None
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    wide_products: bool = False


@joined(_Sequence)
class Options:
    """What a call has beside tensors with gradients: the forward's arguments from `lengths` on, but
    for `needs`."""

    save_cells: bool = False
    own_output: bool = True


@joined({"x": Tensor, "h0": Tensor | None, "c0": Tensor | None, "weights": list[Tensor]}, Options)
class StackForward:
    needs: list[bool] | None = None


class _Tape(NamedTuple):
    x: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    matrices: list[Tensor]
    output: Tensor
    tape: list[Tensor]


@joined(ResultGrads, _Tape, _Sequence.__annotations__)
class StackBackward:
    needs: list[bool]


def lowest_of(needs, per_layer: int) -> int:
    """The first layer that has a gradient to give."""
    return 0 if True in needs[:3] else (needs.index(True) - 3) // per_layer


def _sizes(sequence: Tensor, bidirectional: bool, batch_first: bool):
    """T, (N,) or () without rows, D."""
    T, *rows = sequence.shape[:-1]
    if batch_first and rows:
        T, rows = rows[0], [T]
    return T, tuple(rows), 2 if bidirectional else 1


def _sequence(like: Tensor, T: int, rows: tuple, width: int, batch_first: bool) -> Tensor:
    made = like.new_empty((T, *rows, width))
    return made.transpose(0, 1) if batch_first and rows else made


def _forward_fake(call: StackForward) -> list[Tensor]:
    x, layers, needs = call.x, call.layers, call.needs
    T, rows, D = _sizes(x, call.bidirectional, call.batch_first)
    H4, P = call.weights[1].shape
    N, H = rows[0] if rows else 1, H4 // 4
    results = [
        _sequence(x, T, rows, D * P, call.batch_first),
        *(x.new_empty((layers * D, *rows, width)) for width in (P, H)),
    ]
    if call.save_cells:
        results.append(_sequence(x, T, rows, D * H, call.batch_first))
    for k in range(lowest_of(needs, len(call.weights) // layers) if needs else layers, layers):
        if k:
            results.append(x.new_empty((T, N, D * P)))
        results.append(x.new_empty((T, N, D, H), dtype=accumulation_dtype(x.dtype)))
        results.append(x.new_empty((T, N, D, H4)))
    if needs and call.own_output:
        results.append(_sequence(x, T, rows, D * P, call.batch_first))
    return results


def _backward_fake(call: StackBackward) -> list[Tensor]:
    x, output, layers = call.x, call.output, call.layers
    T, rows, D = _sizes(output, call.bidirectional, call.batch_first)
    need_dx, need_dh0, need_dc0, *needs = call.needs
    H4, P, each = call.tape[-1].shape[3], output.shape[-1] // D, len(needs) // (layers * D)
    results = [_sequence(output, T, rows, x.shape[-1], call.batch_first)] if need_dx else []
    for width, need in ((P, need_dh0), (H4 // 4, need_dc0)):
        if need:
            results.append(output.new_empty((layers * D, *rows, width)))
    for j, need in enumerate(needs):
        k, i = divmod(j, D * each)
        inputs = D * P if k else None if x is None else x.shape[-1]
        shapes = [(H4, inputs), (H4, P), *[(H4,)] * 2 * (each >= 4), (P, H4 // 4)]
        if need:
            results.append(output.new_empty(shapes[i % each]))
    return results


def define(prefix: str, name: str) -> Pair:
    """The pair of ops `<name>_forward` and `<name>_backward`, whose kernels are compiled."""
    forward = define_op(
        f"{name}_forward",
        StackForward,
        list[Tensor],
        fake=_forward_fake,
        or_nothing=True,
    )
    backward = define_op(f"{name}_backward", StackBackward, list[Tensor], fake=_backward_fake)
    return Pair(prefix, forward.call, backward.call)


# By the prefix of the recurrence ops that a backend runs.
PAIRS = {"lstm": define("lstm", "lstm_stack")}


def run(pair: Pair, needs, x: Tensor, h0, c0, weights: list, options: dict) -> list | None:
    """output, h_n, c_n, and with save_cells the cells; None where the op does not take the
    arguments. For a call that `alone.pair_for` has a pair for.

    Args:
        needs: `alone.needed` of x, h0, c0 and the weights. options: what of `Options` is not as by
        default; torch takes 0.1 to 0.2 us for each argument that it is given.
    """
    try:
        if not needs:
            return pair.forward(x, h0, c0, weights, **options) or None
        with below_autograd():
            results = pair.forward(x, h0, c0, weights, **options, needs=needs)
    except RuntimeError as error:
        _say(error, _forward_fake, StackForward(x, h0, c0, weights, **options, needs=needs or None))
        raise
    if not results:
        return None
    options = Options(**options)
    applied = _apply((pair, options, needs, results), *unwrapped((x, h0, c0, *weights)))
    return applied[: 3 + options.save_cells]


def _say(error: RuntimeError, allocate, call: StackForward | StackBackward) -> None:
    """Inside the compiled library a failed allocation loses its type and text: the same is
    allocated again here, for torch to say it."""
    if "API call failed" in str(error):
        allocate(call)


class Layers(torch.autograd.Function):
    """The pair as one node of autograd: `results` are what the forward gave."""

    @staticmethod
    def forward(ctx, call, x, h0, c0, *weights):
        pair, options, needs, results = call
        tape = results[3 + options.save_cells :]
        output = tape.pop() if options.own_output else results[0]
        per_layer = len(weights) // options.layers
        each = per_layer // 2 if options.bidirectional else per_layer
        lowest = lowest_of(needs, per_layer)
        first = lowest * per_layer
        matrices = *weights[first::each], *weights[first + 1 :: each]
        if each % 2:
            matrices += weights[first + each - 1 :: each]
        ctx.save_for_backward(
            None if lowest else x, h0, c0, options.lengths, options.reset_mask, output,
            *matrices, *tape, *(options.noise or ()),
        )  # fmt: skip
        last_matrix = len(matrices)
        # One attribute: each is an entry of a dictionary that is the node's own.
        ctx.call = pair, lowest, each, last_matrix, last_matrix + len(tape), options[3:]
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx, doutput, dh_n, dc_n, *rest):
        needs = ctx.needs_input_grad[1:]
        x, h0, c0, lengths, reset_mask, output, *saved = ctx.saved_tensors
        pair, lowest, each, last_matrix, last_tape, sizes = ctx.call
        matrices, tape = saved[:last_matrix], saved[last_matrix:last_tape]
        noise = saved[last_tape:] or None
        save_cells = sizes[-2]
        dcells, *dtape = rest if save_cells else (None, *rest)
        grads = doutput, dh_n, dc_n, dcells
        if (
            _is_grad_enabled()
            or _is_compiling()
            or transforms.active()
            or not _NONE.issuperset(dtape)
            or True in [_is_legacy_batched(d) for d in grads if d is not None]
        ):
            options = Options(lengths, reset_mask, noise, *sizes)
            saved = Saved(x, h0, c0, matrices, output, tape, lowest, each)
            return None, *by_layers(pair.prefix, options, needs, grads, dtape, saved)
        given = *grads, x, h0, c0, matrices, output, tape, lengths, reset_mask, noise, *sizes[:-2], needs
        try:
            with below_autograd():
                found = pair.backward(*given)
        except RuntimeError as error:
            _say(error, _backward_fake, StackBackward(*given))
            raise
        if len(found) < len(needs):
            found = iter(found)
            found = [next(found) if need else None for need in needs]
        return None, *found


_apply = plain_apply(Layers)
