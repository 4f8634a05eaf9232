"""The custom ops of a layer's recurrence with zoneout, recurrent dropout and layer normalisation:
`<family>_variant_forward` and `<family>_variant_backward`, beside the plain ones of recurrence.py.

Arguments are those of `reference.variant.variant_forward` and `variant_backward.variant_backward`,
where they end in the tape's switches. The reference runs wherever no kernels are registered for a
device; kernels take the place of the forward and of the backward's loop (`register`).
"""

import functools

import torch

from ..precision import accumulation_dtype
from ..reference import variant as variant_reference
from ..reference import variant_backward
from . import recurrence
from .library import (
    check_one_device,
    check_tape,
    differentiate_backward,
    keep_backward_inputs,
    library,
    outside_autocast,
)

_OPTIONS = "Tensor? seed, float zoneout_h, float zoneout_c, int stream, int first_step"
_WEIGHTS = (
    "Tensor weight_hh, Tensor? weight_hr, Tensor? h_mask, Tensor? norm_hh, Tensor? norm_c, "
    "Tensor? bias_c"
)
FORWARD = (
    f"{{}}_forward(Tensor gates_x, Tensor h0, Tensor c0, {_WEIGHTS}, Tensor? lengths, "
    f"Tensor? reset_mask, {_OPTIONS}, bool save_tape, bool save_cells{{}}) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)"
)
BACKWARD = (
    "{}_backward(Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor? dgates_out, "
    f"Tensor h0, Tensor c0, {_WEIGHTS}, Tensor output, Tensor cells, Tensor gates, "
    f"Tensor? lengths, Tensor? reset_mask, {_OPTIONS}, bool wide_gates, bool[] needs) "
    "-> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dweight_hh, Tensor dweight_hr, "
    "Tensor dnorm_hh, Tensor dnorm_c, Tensor dbias_c)"
)
_TENSORS, _SCALARS = 19, 6  # of the backward's arguments


def _forward_reference(*args):
    *args, save_tape, save_cells = args
    output, h_n, c_n, cells, gates = variant_reference.variant_forward(*args)
    if not save_tape:
        gates = gates.new_empty((0,))
        if not save_cells:
            cells = cells.new_empty((0,))
    return output, h_n, c_n, cells, gates


_backward_reference = functools.partial(variant_backward.variant_backward, variant_backward.loop)


def forward_results(*args):
    """Tensors of the forward's shapes, uninitialised."""
    check_one_device(*args[:12])
    plain = *args[:5], None, None
    return recurrence.forward_results(*plain, *args[-2:])


def _backward_results(*args):
    check_one_device(*args[:_TENSORS])
    h0, c0, *weights = args[5:13]
    gates, (wide_gates, needs) = args[15], args[-2:]
    del weights[2]  # h_mask has no gradient
    dtype = accumulation_dtype(h0.dtype) if wide_gates else h0.dtype
    return (
        gates.new_empty(gates.shape, dtype=dtype),
        h0.new_empty(h0.shape, dtype=c0.dtype),
        c0.new_empty(c0.shape),
        *(
            h0.new_empty((0,) if w is None or not need else w.shape)
            for w, need in zip(weights, needs, strict=True)
        ),
    )


def _setup_forward(ctx, inputs, output):
    gates_x, h0, *rest = inputs[:12]
    y, _, _, cells, gates = output
    weights, (lengths, reset_mask, seed) = rest[:7], rest[7:]
    ctx.save_for_backward(h0, *weights, y, cells, gates, lengths, reset_mask, seed)
    ctx.options = inputs[12:16]
    ctx.wide_gates = gates_x.dtype != h0.dtype
    ctx.has_tape = inputs[16]
    ctx.set_materialize_grads(False)


def _make_forward_autograd(family):
    @outside_autocast
    def backward(ctx, doutput, dh_n, dc_n, dcells, dgates_out):
        check_tape(ctx, f"{family}_variant_forward")
        needs = ctx.needs_input_grad
        # A gradient for the gates comes from a backward that was itself differentiated; compiled
        # kernels leave it to the reference.
        rule = "reference" if dgates_out is not None else family
        of_weights = [needs[k] for k in (3, 4, 6, 7, 8)]
        grads = getattr(torch.ops.fastlstm, f"{rule}_variant_backward")(
            doutput, dh_n, dc_n, dcells, dgates_out, *ctx.saved_tensors, *ctx.options,
            ctx.wide_gates, of_weights,
        )  # fmt: skip
        # In the order of the forward's arguments, of which h_mask has none.
        places = (0, 1, 2, 3, 4, None, 5, 6, 7)
        found = [
            grads[place] if place is not None and needs[k] else None
            for k, place in enumerate(places)
        ]
        return (*found, *(None,) * 9)

    return backward


def define(family: str) -> None:
    """The ops `<family>_variant_forward` and `<family>_variant_backward`."""
    names = f"{family}_variant_forward", f"{family}_variant_backward"
    for schema, name, impl, fake in (
        (FORWARD.format(f"{family}_variant", ""), names[0], _forward_reference, forward_results),
        (BACKWARD.format(f"{family}_variant"), names[1], _backward_reference, _backward_results),
    ):
        library.define(schema)
        library.impl(name, outside_autocast(impl), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastlstm::{name}", fake, lib=library)
    torch.library.register_autograd(
        f"fastlstm::{names[0]}",
        _make_forward_autograd(family),
        setup_context=_setup_forward,
        lib=library,
    )
    torch.library.register_autograd(
        f"fastlstm::{names[1]}",
        lambda ctx, *grads: differentiate_backward(
            ctx, grads, _backward_reference, _TENSORS, _SCALARS
        ),
        setup_context=keep_backward_inputs(_TENSORS),
        lib=library,
    )


def register(family: str, forward, loop, device: str) -> None:
    """Have the variant ops of `family` run by these functions on a device, such as "CUDA":
    the forward's arguments, and those of `variant_backward.loop`. A forward of None is there
    already."""
    backward = functools.partial(variant_backward.variant_backward, loop)
    for which, function in (("forward", forward), ("backward", backward)):
        if function is not None:
            library.impl(f"{family}_variant_{which}", outside_autocast(function), device)


for _family in recurrence.FAMILIES:
    define(_family)


LOOP = (
    "{}_variant_loop(Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor h0, "
    "Tensor c0, Tensor weight_hh, Tensor? weight_hr, Tensor? h_mask, Tensor? norm_hh, "
    "Tensor? norm_c, Tensor? bias_c, Tensor cells, Tensor gates, Tensor candidates, "
    "Tensor? product_hat, Tensor? product_scale, Tensor? cell_hat, Tensor? cell_scale, "
    "Tensor? lengths, Tensor? reset_mask, Tensor? seed, float zoneout_h, float zoneout_c, "
    "int stream, int first_step, bool wide_gates{}) "
    "-> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dhidden, Tensor dproducts, Tensor dshown)"
)


def loop_of(run):
    """`variant_backward.loop` by a kernel with the arguments of `LOOP`."""

    def loop(
        doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, h_mask, norm_hh,
        norm_c, bias_c, cells, gates, prepared, lengths, reset_mask, seed, options, wide_gates,
    ):  # fmt: skip
        if dgates_out is not None:
            raise RuntimeError(
                "fastlstm: a gradient of the gates is the reference's to take: call "
                "reference_variant_backward"
            )
        return variant_backward.Arrived(
            *run(
                doutput, dh_n, dc_n, dcells, h0, c0, weight_hh, weight_hr, h_mask, norm_hh, norm_c,
                bias_c, cells, gates, *prepared, lengths, reset_mask, seed, *options, wide_gates,
            )
        )  # fmt: skip

    return loop
