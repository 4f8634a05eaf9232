"""The custom ops of a whole layer: input product, recurrence, and in the backward all of the
layer's gradients.

By default `<prefix>_layer_forward` and `<prefix>_layer_backward` are torch's own matrix products
around the recurrence ops of that prefix (recurrence.py), so a backend only has to bring the
recurrence. A backend may register kernels for the whole layer where these are faster: the CPU's
(csrc/torch/layer_forward.cpp) computes the gate inputs of one chunk of steps at a time, and never
holds those of all steps.

Arguments, T steps, N rows, I inputs, D directions, H units, P outputs: x (T, N, I), h0 (D, N, P),
c0 (D, N, H), then for the forward and, where it is not None, the reverse direction weight_ih (4H,
I), weight_hh (4H, P), bias_ih and bias_hh (4H,) or None, weight_hr (P, H) or None; lengths (N,)
int64; reset_mask (T, N) bool; wide_products: whether matrix products outside the recurrence are in
the accumulation dtype.
"""

import contextlib
import functools
import operator
from typing import NamedTuple

import torch
from torch import Tensor

from ..fields import joined
from ..precision import accumulation_dtype
from ..reference import backward as reference_backward
from ..reference import lstm as reference
from ..reference.backward import ResultGrads
from ..weights import LSTMWeights, weights_of
from . import recurrence, transforms
from .define import as_function, define_op
from .library import below_autograd, op, outside_autocast
from .recurrence import PREFIXES, Results
from .weight_gradients import Wanted, weight_gradients


class LayerForward(NamedTuple):
    x: Tensor
    h0: Tensor
    c0: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_hr: Tensor | None
    weight_ih_reverse: Tensor | None
    weight_hh_reverse: Tensor | None
    bias_ih_reverse: Tensor | None
    bias_hh_reverse: Tensor | None
    weight_hr_reverse: Tensor | None
    lengths: Tensor | None
    reset_mask: Tensor | None
    wide_products: bool
    save_tape: bool
    save_cells: bool


class LayerTape(NamedTuple):
    """What the backward needs of the forward: its arguments without biases, and its results."""

    x: Tensor
    h0: Tensor
    c0: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    weight_hr: Tensor | None
    weight_ih_reverse: Tensor | None
    weight_hh_reverse: Tensor | None
    weight_hr_reverse: Tensor | None
    output: Tensor
    cells: Tensor
    gates: Tensor
    lengths: Tensor | None
    reset_mask: Tensor | None
    wide_products: bool


@joined(ResultGrads, LayerTape)
class LayerBackward:
    """need_dx, need_dweights: whether the gradients of x, and of the weights, are wanted."""

    need_dx: bool
    need_dweights: bool


class LayerGrads(NamedTuple):
    """Gradients of weights are (D, ...); dbias is that of bias_ih and that of bias_hh. What is not
    wanted has no elements."""

    dx: Tensor
    dh0: Tensor
    dc0: Tensor
    dweight_ih: Tensor
    dweight_hh: Tensor
    dbias: Tensor
    dweight_hr: Tensor


_PARAMETERS = [name for name in LayerForward._fields if name.startswith(("weight", "bias"))]
_parameters = operator.attrgetter(*_PARAMETERS)
_NO_WEIGHTS = LSTMWeights(None, None)
_NO_GRADIENTS = (None,) * len(("lengths", "reset_mask", "wide_products", "save_tape", "save_cells"))


def _stacked(forward: Tensor | None, reverse: Tensor | None) -> Tensor | None:
    """(D, ...) from the tensor of each direction."""
    if forward is None:
        return None
    return forward.unsqueeze(0) if reverse is None else torch.stack([forward, reverse])


def _product_dtype(dtype: torch.dtype, wide_products: bool) -> torch.dtype:
    return accumulation_dtype(dtype) if wide_products else dtype


def input_weights(weights_ih, biases, dtype: torch.dtype, product: torch.dtype):
    """A layer's operands of `input_product`: W_ih transposed (I, D*4H) in the dtype `product`, and
    the sum of both biases (D*4H,) in the accumulation dtype of `dtype`, or None.

    weights_ih: of each direction, None where there is none. biases: (forward, reverse) of bias_ih
    and of bias_hh.
    """
    wide = accumulation_dtype(dtype)
    stacked = [_stacked(*pair) for pair in biases]
    stacked = [b.to(wide).flatten() for b in stacked if b is not None]
    return _stacked(*weights_ih).flatten(0, 1).to(product).t(), sum(stacked) if stacked else None


def input_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """gates_x (T, N, D*4H) from x (T, N, I), in the dtype of `bias`, or without it of `weight`."""
    rows = x.to(weight.dtype).flatten(0, 1)
    if bias is None:
        gates_x = rows @ weight
    elif bias.dtype == weight.dtype:
        gates_x = torch.addmm(bias, rows, weight)
    else:
        gates_x = rows @ weight + bias
    return gates_x.view(*x.shape[:2], weight.shape[1])


def plain_forward(prefix: str, call: LayerForward) -> Results:
    """A layer's forward by torch's products around the op `<prefix>_forward`."""
    x, h0 = call.x, call.h0
    weights = call.weight_ih, call.weight_ih_reverse
    biases = (call.bias_ih, call.bias_ih_reverse), (call.bias_hh, call.bias_hh_reverse)
    product = _product_dtype(x.dtype, call.wide_products)
    gates_x = input_product(x, *input_weights(weights, biases, x.dtype, product))
    recurrent = recurrence.Forward(
        gates_x.view(*x.shape[:2], h0.shape[0], call.weight_hh.shape[0]),
        h0,
        call.c0,
        _stacked(call.weight_hh, call.weight_hh_reverse),
        _stacked(call.weight_hr, call.weight_hr_reverse),
        call.lengths,
        call.reset_mask,
        call.save_tape,
        call.save_cells,
    )
    return Results(*op(f"{prefix}_forward")(*recurrent))


def plain_backward(
    recurrence_backward,
    call: LayerBackward,
    dgates_out: Tensor | None = None,
    samples: int | None = None,
) -> LayerGrads:
    """A layer's backward by torch's products around the recurrence's.

    Args:
        recurrence_backward: takes the fields of `recurrence.Backward`.
        dgates_out: the gradient of the forward's gates, None where zero.
        samples: see `weight_gradients`.
    """
    x, lengths = call.x, call.lengths
    dgates_x, dh0, dc0, dhidden = recurrence_backward(
        *recurrence.Backward(
            call.doutput, call.dh_n, call.dc_n, call.dcells, dgates_out, call.h0, call.c0,
            _stacked(call.weight_hh, call.weight_hh_reverse),
            _stacked(call.weight_hr, call.weight_hr_reverse), call.cells, call.gates, lengths,
            call.reset_mask, call.wide_products,
        )
    )  # fmt: skip
    dx = None
    if call.need_dx:
        # flatten has no batching rule under the vmap that batches second derivatives; reshape has.
        T, N, D, H4 = dgates_x.shape
        weight = _stacked(call.weight_ih, call.weight_ih_reverse).reshape(D * H4, x.shape[2])
        product = _product_dtype(x.dtype, call.wide_products)
        dx = (dgates_x.reshape(T, N, D * H4) @ weight.to(product)).to(x.dtype)
        dx = reference.existing(dx, lengths)  # so that a second derivative is 0 at other steps too
    needed = call.need_dweights
    dweights = weight_gradients(
        dgates_x, dhidden, x, call.output, call.h0, call.cells, call.gates, lengths,
        call.reset_mask, Wanted(needed, needed, needed, needed and call.weight_hr is not None),
        samples=samples,
    )  # fmt: skip
    # A separate empty tensor for each: an op's results must not share memory.
    dx, *dweights = (x.new_empty((0,)) if r is None else r for r in (dx, *dweights))
    return LayerGrads(dx, dh0, dc0, *dweights)


def _backward_fake(call: LayerBackward) -> LayerGrads:
    x, h0, c0 = call.x, call.h0, call.c0
    D, H, P, I, needed = h0.shape[0], c0.shape[2], h0.shape[2], x.shape[2], call.need_dweights
    projected = call.weight_hr is not None
    return LayerGrads(
        x.new_empty(x.shape if call.need_dx else (0,)),
        h0.new_empty(h0.shape, dtype=c0.dtype),
        c0.new_empty(c0.shape),
        x.new_empty((D, 4 * H, I) if needed else (0,)),
        x.new_empty((D, 4 * H, P) if needed else (0,)),
        x.new_empty((D, 4 * H) if needed else (0,)),
        x.new_empty((D, P, H) if needed and projected else (0,)),
    )


def _gradients(prefix: str, tape: LayerTape, grads: Results, needs: LayerForward) -> LayerForward:
    """The derivative of `<prefix>_layer_forward`: the gradients of its arguments, None where not
    needed.

    Args:
        grads: gradients of the results, None where zero. needs: for each argument whether its
        gradient is needed; False where the argument is None.
    """
    doutput, dh_n, dc_n, dcells, dgates = grads
    call = LayerBackward(doutput, dh_n, dc_n, dcells, *tape, needs.x, True in _parameters(needs))
    transformed = transforms.active()
    if dgates is not None:
        # The gates have a gradient only in a second derivative, which has no compiled kernels.
        recurrence_backward = reference_backward.lstm_backward if transformed else op("reference_backward")
        results = plain_backward(recurrence_backward, call, dgates)
    elif transformed:
        results = transforms.backwards[prefix](call)
    else:
        run = _backwards[prefix]
        with contextlib.nullcontext() if torch.is_grad_enabled() else below_autograd():
            results = run(*call)
    dx, dh0, dc0, *dweights = results
    reverse = _NO_WEIGHTS
    if tape.weight_hh_reverse is not None:
        reverse = _of_direction(weights_of(needs, True), 1, *dweights)
    return LayerForward(
        dx if needs.x else None,
        dh0,
        dc0,
        *_of_direction(weights_of(needs, False), 0, *dweights),
        *reverse,
        *_NO_GRADIENTS,
    )


gradients = outside_autocast(_gradients)


def _of_direction(needs: LSTMWeights, d: int, dweight_ih, dweight_hh, dbias, dweight_hr) -> LSTMWeights:
    """The gradients that direction d needs, from those of all directions (D, ...)."""
    return LSTMWeights(
        dweight_ih[d] if needs.weight_ih else None,
        dweight_hh[d] if needs.weight_hh else None,
        dbias[d] if needs.bias_ih else None,
        # Both biases have the same gradient, but an op's results must not share memory.
        dbias[d].clone() if needs.bias_hh else None,
        dweight_hr[d] if needs.weight_hr else None,
    )


def _reference_backward(call: LayerBackward, samples: int | None = None) -> LayerGrads:
    return plain_backward(reference_backward.lstm_backward, call, samples=samples)


# By prefix: the forward's op, the same op as an autograd.Function, the backward's op.
_forwards: dict = {}
_functions: dict = {}
_backwards: dict = {}


def layer(prefix: str, args: tuple, save_tape: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`<prefix>_layer_forward` with the least overhead that the call allows. args: the op's
    arguments. save_tape: the value of `save_tape` among them."""
    if transforms.active():
        if torch.compiler.is_compiling():
            transforms.allow_in_graph(prefix)
        return transforms.layers[prefix](*args)
    if torch.compiler.is_compiling():
        return _forwards[prefix](*args)
    if save_tape:
        return _functions[prefix](*args)
    with below_autograd():
        return _forwards[prefix](*args)


def define(prefix: str) -> None:
    """Defines the layer ops of a prefix, after its recurrence ops."""
    recurrence_backward = op(f"{prefix}_backward")

    def backward(call: LayerBackward, samples: int | None = None) -> LayerGrads:
        return plain_backward(recurrence_backward, call, samples=samples)

    def backward_of_samples(call: LayerBackward, samples: int | None):
        if samples is None:
            return backward_op.overload(*call)
        return backward(call, samples)

    forward_op = define_op(
        f"{prefix}_layer_forward",
        LayerForward,
        Results,
        run=functools.partial(plain_forward, prefix),
        fake=recurrence.forward_results,
        tape=LayerTape,
        gradients=functools.partial(_gradients, prefix),
        vmap=lambda op, *of_call: transforms.batch_forward(lambda call: op(*call), *of_call),
    )
    backward_op = define_op(
        f"{prefix}_layer_backward",
        LayerBackward,
        LayerGrads,
        run=backward,
        fake=_backward_fake,
        plain=_reference_backward,
        vmap=lambda _, *of_call: transforms.batch_backward(backward_of_samples, *of_call, None),
    )
    _forwards[prefix], _backwards[prefix] = forward_op.overload, backward_op.overload
    _functions[prefix] = as_function(forward_op)
    transforms.define(prefix, forward_op, backward_op, backward_of_samples, _reference_backward)


for _prefix in PREFIXES:
    define(_prefix)
