"""The custom ops of a whole layer: input product, recurrence, and in the backward all of the
layer's gradients.

`<family>_layer_forward` and `<family>_layer_backward` are by default what stands here: torch's own
matrix products around the recurrence ops of the family (recurrence.py), so a backend that brings
a recurrence has a layer. A backend may register its own for a device where that is faster: the
CPU's (csrc/torch/layer_forward.cpp) makes gates for a few steps at a time and never holds all of
them.

Arguments, T steps, N rows, I inputs, D directions, H units, P outputs: x (T, N, I), h0 (D, N, P),
c0 (D, N, H), then for the forward and, where it is not None, the reverse direction weight_ih (4H,
I), weight_hh (4H, P), bias_ih and bias_hh (4H,) or None, weight_hr (P, H) or None; lengths (N,)
int64; reset_mask (T, N) bool. `wide_products` asks for the matrix products outside the recurrence
in the accumulation dtype.
"""

import contextlib

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..reference import lstm as reference
from . import transforms
from .library import (
    check_one_device,
    check_tape,
    differentiate_backward,
    keep_backward_inputs,
    library,
    outside_autocast,
)
from .recurrence import FAMILIES
from .weight_gradients import weight_gradients

_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
_FORWARD = (
    "{}_layer_forward(Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh, "
    "Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr, Tensor? weight_ih_reverse, "
    "Tensor? weight_hh_reverse, Tensor? bias_ih_reverse, Tensor? bias_hh_reverse, "
    "Tensor? weight_hr_reverse, Tensor? lengths, Tensor? reset_mask, bool wide_products, "
    "bool save_tape, bool save_cells) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)"
)
_BACKWARD = (
    "{}_layer_backward(Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor x, "
    "Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh, Tensor? weight_hr, "
    "Tensor? weight_ih_reverse, Tensor? weight_hh_reverse, Tensor? weight_hr_reverse, "
    "Tensor output, Tensor cells, Tensor gates, Tensor? lengths, Tensor? reset_mask, "
    "bool wide_products, bool need_dx, bool need_dweights) "
    "-> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dweight_ih, Tensor dweight_hh, Tensor dbias, "
    "Tensor dweight_hr)"
)


def _stacked(forward: Tensor | None, reverse: Tensor | None) -> Tensor | None:
    """One tensor (D, ...) of what each direction has."""
    if forward is None:
        return None
    return forward.unsqueeze(0) if reverse is None else torch.stack([forward, reverse])


def _product_dtype(dtype: torch.dtype, wide_products: bool) -> torch.dtype:
    return accumulation_dtype(dtype) if wide_products else dtype


def input_weights(weights_ih, biases, dtype: torch.dtype, product: torch.dtype):
    """What `input_product` takes of a layer: its W_ih (4H, I), transposed and in the dtype
    `product`, and its bias in the accumulation dtype of `dtype`, or None.

    weights_ih: of each direction, None where there is none. biases: (forward, reverse) of bias_ih
    and of bias_hh.
    """
    wide = accumulation_dtype(dtype)
    stacked = [_stacked(*pair) for pair in biases]
    stacked = [b.to(wide).flatten() for b in stacked if b is not None]
    return _stacked(*weights_ih).flatten(0, 1).to(product).t(), sum(stacked) if stacked else None


def input_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """gates_x (T, N, D*4H) of x (T, N, I), in the dtype of `weight`; with a bias in the bias's."""
    rows = x.to(weight.dtype).flatten(0, 1)
    if bias is None:
        gates_x = rows @ weight
    elif bias.dtype == weight.dtype:
        gates_x = torch.addmm(bias, rows, weight)
    else:
        gates_x = rows @ weight + bias
    return gates_x.view(*x.shape[:2], weight.shape[1])


def plain_forward(
    family, x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_ih_reverse,
    weight_hh_reverse, bias_ih_reverse, bias_hh_reverse, weight_hr_reverse, lengths, reset_mask,
    wide_products, save_tape, save_cells,
):  # fmt: skip
    """A layer's forward by torch's products around the family's recurrence op."""
    biases = (bias_ih, bias_ih_reverse), (bias_hh, bias_hh_reverse)
    weights = weight_ih, weight_ih_reverse
    product = _product_dtype(x.dtype, wide_products)
    gates_x = input_product(x, *input_weights(weights, biases, x.dtype, product))
    gates_x = gates_x.view(*x.shape[:2], h0.shape[0], weight_hh.shape[0])
    return getattr(torch.ops.fastlstm, f"{family}_forward")(
        gates_x, h0, c0, _stacked(weight_hh, weight_hh_reverse),
        _stacked(weight_hr, weight_hr_reverse), lengths, reset_mask, save_tape, save_cells,
    )  # fmt: skip


def _backward(
    recurrence_backward, doutput, dh_n, dc_n, dcells, dgates_out, x, h0, c0, weight_ih, weight_hh,
    weight_hr, weight_ih_reverse, weight_hh_reverse, weight_hr_reverse, output, cells, gates,
    lengths, reset_mask, wide_products, need_dx, need_dweights,
):  # fmt: skip
    product = _product_dtype(x.dtype, wide_products)
    dgates_x, dh0, dc0, dhidden = recurrence_backward(
        doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, _stacked(weight_hh, weight_hh_reverse),
        _stacked(weight_hr, weight_hr_reverse), cells, gates, lengths, reset_mask, wide_products,
    )  # fmt: skip
    nothing = x.new_empty((0,))
    dx = dweight_ih = dweight_hh = dbias = dweight_hr = nothing
    if need_dx:
        # reshape, for flatten has no rule under the vmap that batches gradients of gradients.
        T, N, D, H4 = dgates_x.shape
        weights = _stacked(weight_ih, weight_ih_reverse).reshape(D * H4, x.shape[2])
        dx = (dgates_x.reshape(T, N, D * H4) @ weights.to(product)).to(x.dtype)
        dx = reference.existing(dx, lengths)  # for what arrives there from a second derivative
    if need_dweights:
        dweight_ih, dweight_hh, dbias, of_projection = weight_gradients(
            dgates_x, dhidden, x, output, h0, cells, gates, lengths, reset_mask,
            weight_hr is not None,
        )  # fmt: skip
        if weight_hr is not None:
            dweight_hr = of_projection
    # An op's results must not share memory, as its empty ones would here.
    return tuple(
        r.clone() if r is nothing else r
        for r in (dx, dh0, dc0, dweight_ih, dweight_hh, dbias, dweight_hr)
    )


def _forward_fake(
    x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_ih_reverse,
    weight_hh_reverse, bias_ih_reverse, bias_hh_reverse, weight_hr_reverse, lengths, reset_mask,
    wide_products, save_tape, save_cells,
):  # fmt: skip
    check_one_device(
        x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_ih_reverse,
        weight_hh_reverse, bias_ih_reverse, bias_hh_reverse, weight_hr_reverse, lengths, reset_mask,
    )  # fmt: skip
    T, N, _ = x.shape
    D, H, P = h0.shape[0], c0.shape[2], h0.shape[2]
    wide = accumulation_dtype(h0.dtype)
    return (
        h0.new_empty((T, N, D * P)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        h0.new_empty((T, N, D, H) if save_tape or save_cells else (0,), dtype=wide),
        h0.new_empty((T, N, D, 4 * H) if save_tape else (0,)),
    )


def _backward_fake(
    doutput, dh_n, dc_n, dcells, x, h0, c0, weight_ih, weight_hh, weight_hr, weight_ih_reverse,
    weight_hh_reverse, weight_hr_reverse, output, cells, gates, lengths, reset_mask, wide_products,
    need_dx, need_dweights,
):  # fmt: skip
    check_one_device(
        doutput, dh_n, dc_n, dcells, x, h0, c0, weight_ih, weight_hh, weight_hr, weight_ih_reverse,
        weight_hh_reverse, weight_hr_reverse, output, cells, gates, lengths, reset_mask,
    )  # fmt: skip
    D, H, P, I = h0.shape[0], c0.shape[2], h0.shape[2], x.shape[2]
    return (
        x.new_empty(x.shape if need_dx else (0,)),
        h0.new_empty(h0.shape, dtype=c0.dtype),
        c0.new_empty(c0.shape),
        x.new_empty((D, 4 * H, I) if need_dweights else (0,)),
        x.new_empty((D, 4 * H, P) if need_dweights else (0,)),
        x.new_empty((D, 4 * H) if need_dweights else (0,)),
        x.new_empty((D, P, H) if need_dweights and weight_hr is not None else (0,)),
    )


def _setup_forward(ctx, inputs, output):
    x, h0, c0, *weights, lengths, reset_mask, wide_products, save_tape, _ = inputs
    matrices = (weights[k] for k in (0, 1, 4, 5, 6, 9))
    y, _, _, cells, gates = output
    ctx.save_for_backward(x, h0, c0, *matrices, y, cells, gates, lengths, reset_mask)
    ctx.present = [w is not None for w in weights]
    ctx.wide_products = wide_products
    ctx.has_tape = save_tape
    ctx.set_materialize_grads(False)


def _make_forward_autograd(family):
    @outside_autocast
    def backward(ctx, doutput, dh_n, dc_n, dcells, dgates_out):
        check_tape(ctx, f"{family}_layer_forward")
        needs = ctx.needs_input_grad
        rest = (*ctx.saved_tensors, ctx.wide_products, needs[0], any(needs[3:13]))
        transformed = transforms.active()
        if dgates_out is not None:
            # Only a backward that was itself differentiated has a gradient for the gates; compiled
            # kernels leave that one to the reference.
            recurrence = reference.lstm_backward
            if not transformed:
                recurrence = torch.ops.fastlstm.reference_backward
            results = _backward(recurrence, doutput, dh_n, dc_n, dcells, dgates_out, *rest)
        elif transformed:
            results = transforms.backwards[family](doutput, dh_n, dc_n, dcells, *rest)
        else:
            op = getattr(torch.ops.fastlstm, f"{family}_layer_backward").default
            with contextlib.nullcontext() if torch.is_grad_enabled() else _below_autograd():
                results = op(doutput, dh_n, dc_n, dcells, *rest)
        dx, dh0, dc0, dweight_ih, dweight_hh, dbias, dweight_hr = results
        grads = [dx if needs[0] else None, dh0, dc0]
        for d in (0, 1):
            for name, sums in zip(
                _WEIGHTS, (dweight_ih, dweight_hh, dbias, dbias, dweight_hr), strict=True
            ):
                k = len(grads)
                if not (needs[k] and ctx.present[k - 3]):
                    grads.append(None)
                else:
                    # Both biases have the same gradient; they must not have the same memory.
                    grads.append(sums[d].clone() if name == "bias_hh" else sums[d])
        return (*grads, None, None, None, None, None)

    return backward


def _plain_backward(doutput, dh_n, dc_n, dcells, *rest):
    return _backward(reference.lstm_backward, doutput, dh_n, dc_n, dcells, None, *rest)


_below_autograd = torch._C._AutoDispatchBelowAutograd
# family -> (op, autograd.Function) of the forward, see `layer`.
_forwards: dict[str, tuple] = {}


def layer(
    family: str, args: tuple, save_tape: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`<family>_layer_forward` by the shortest way: `args` are its arguments, `save_tape` is the
    one of them.

    The op's registered autograd costs about 0.2 ms a call for its many arguments (torch reads the
    schema once for each), as much as a short sequence takes. Outside compilation and transforms, a
    Function with the same formula does the same.
    """
    op, function = _forwards[family]
    if transforms.active():
        if torch.compiler.is_compiling():
            transforms.allow_in_graph(family)
        return transforms.layers[family](*args)
    if torch.compiler.is_compiling():
        return op(*args)
    if save_tape:
        return function.apply(*args)
    with _below_autograd():
        return op(*args)


def gradients(family: str, ctx, *grads) -> tuple:
    """The autograd formula of `<family>_layer_forward`: gradients of its arguments, of `grads` of
    its results. ctx is as `_setup_forward` leaves it, with saved_tensors and needs_input_grad."""
    return _forwards[family][1].backward(ctx, *grads)


def _make_function(op, backward):
    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            with _below_autograd():
                results = op(*args)
            _setup_forward(ctx, args, results)
            return results

    Layer.backward = staticmethod(backward)
    return Layer


def define(family: str) -> None:
    """The layer ops of a family whose recurrence ops are defined."""

    def forward(*args):
        return plain_forward(family, *args)

    def backward(doutput, dh_n, dc_n, dcells, *rest):
        op = getattr(torch.ops.fastlstm, f"{family}_backward")
        return _backward(op, doutput, dh_n, dc_n, dcells, None, *rest)

    names = f"{family}_layer_forward", f"{family}_layer_backward"
    for name, schema, impl, fake in zip(
        names,
        (_FORWARD, _BACKWARD),
        (forward, backward),
        (_forward_fake, _backward_fake),
        strict=True,
    ):
        library.define(schema.format(family))
        library.impl(name, outside_autocast(impl), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastlstm::{name}", fake, lib=library)
    forward_autograd = _make_forward_autograd(family)
    op = getattr(torch.ops.fastlstm, names[0]).default
    _forwards[family] = op, _make_function(op, forward_autograd)
    transforms.define(family, _setup_forward, forward_autograd, _plain_backward)
    torch.library.register_autograd(
        f"fastlstm::{names[0]}",
        forward_autograd,
        setup_context=_setup_forward,
        lib=library,
    )
    torch.library.register_autograd(
        f"fastlstm::{names[1]}",
        lambda ctx, *grads: differentiate_backward(ctx, grads, _plain_backward, 18, 3),
        setup_context=keep_backward_inputs(18),
        lib=library,
    )


for _family in FAMILIES:
    define(_family)
