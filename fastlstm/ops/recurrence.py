"""The custom ops of the recurrence of one layer (all directions, all steps): schema, shapes,
autograd.

Each backend family is a pair of ops with one schema, `<family>_forward` and `<family>_backward`;
layer.py puts the input product around it:

* `fastlstm::lstm_*` is what runs by default. A device's compiled kernels register themselves for it
  (csrc/torch/bindings.cpp for the CPU, backends/gpu.py for CUDA); a device without any runs the
  reference.
* `fastlstm::reference_*` is always `reference/lstm.py`.
* A backend that shares its devices with another has a family of its own, such as
  `fastlstm::triton_*` (backends/gpu.py).

The tape (cells, gates) is the same for all, so a forward of one family can be differentiated by
another. Argument shapes are those of `reference.lstm_forward` and `reference.lstm_backward`.
"""

import torch

from ..precision import accumulation_dtype
from ..reference import lstm as reference
from .library import (
    check_one_device,
    check_tape,
    differentiate_backward,
    keep_backward_inputs,
    library,
    outside_autocast,
)
from .weight_gradients import weight_hh_grad, weight_hr_grad

FAMILIES: list[str] = []  # those defined so far

FORWARD = (
    "{}_forward(Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, Tensor? weight_hr, "
    "Tensor? lengths, Tensor? reset_mask, bool save_tape, bool save_cells{}) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)"
)
BACKWARD = (
    "{}_backward(Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor? dgates_out, "
    "Tensor h0, Tensor c0, Tensor weight_hh, Tensor? weight_hr, Tensor cells, Tensor gates, "
    "Tensor? lengths, Tensor? reset_mask, bool wide_gates{}) "
    "-> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dhidden)"
)


def _forward_reference(
    gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, save_tape, save_cells
):
    output, h_n, c_n, cells, gates = reference.lstm_forward(
        gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask
    )
    if not save_tape:
        gates = gates.new_empty((0,))
        if not save_cells:
            cells = cells.new_empty((0,))
    return output, h_n, c_n, cells, gates


def forward_results(
    gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, save_tape, save_cells
):
    """Tensors of the forward's shapes, uninitialised: also its shapes-only kernel."""
    check_one_device(gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask)
    T, N, D, H4 = gates_x.shape
    H, P = c0.shape[-1], h0.shape[-1]
    wide = accumulation_dtype(h0.dtype)
    return (
        h0.new_empty((T, N, D * P)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        h0.new_empty((T, N, D, H) if save_tape or save_cells else (0,), dtype=wide),
        h0.new_empty((T, N, D, H4) if save_tape else (0,)),
    )


def backward_results(
    doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, cells, gates, lengths,
    reset_mask, wide_gates,
):  # fmt: skip
    """Tensors of the backward's shapes, as `forward_results`."""
    check_one_device(
        doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, cells, gates,
        lengths, reset_mask,
    )  # fmt: skip
    T, N, D, _ = gates.shape
    wide = accumulation_dtype(h0.dtype)
    return (
        gates.new_empty(gates.shape, dtype=wide if wide_gates else h0.dtype),
        h0.new_empty(h0.shape, dtype=c0.dtype),
        c0.new_empty(c0.shape),
        h0.new_empty((T, N, D, h0.shape[-1]) if weight_hr is not None else (0,), dtype=wide),
    )


def _setup_forward(ctx, inputs, output):
    gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, save_tape, _ = inputs
    y, _, _, cells, gates = output
    ctx.save_for_backward(h0, c0, weight_hh, weight_hr, lengths, reset_mask, y, cells, gates)
    ctx.wide_gates = gates_x.dtype != h0.dtype
    ctx.has_tape = save_tape
    ctx.set_materialize_grads(False)


def _make_forward_autograd(family):
    @outside_autocast
    def backward(ctx, doutput, dh_n, dc_n, dcells, dgates_out):
        check_tape(ctx, f"{family}_forward")
        h0, c0, weight_hh, weight_hr, lengths, reset_mask, output, cells, gates = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if not any(needs[:5]):
            return (None,) * 9
        # A gradient for the gates comes from a backward that was itself differentiated; compiled
        # kernels leave it to the reference.
        rule = "reference" if dgates_out is not None else family
        dgates_x, dh0, dc0, dhidden = getattr(torch.ops.fastlstm, f"{rule}_backward")(
            doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, cells, gates,
            lengths, reset_mask, ctx.wide_gates,
        )  # fmt: skip
        dweight_hh = dweight_hr = None
        if needs[3]:
            if lengths is not None:
                lengths = lengths.clamp(0, gates.shape[0])
            dweight_hh = weight_hh_grad(dgates_x, output, h0, lengths, reset_mask)
            dweight_hh = dweight_hh.to(weight_hh.dtype)
        if needs[4]:
            dweight_hr = weight_hr_grad(dhidden, cells, gates).to(weight_hr.dtype)
        return dgates_x, dh0, dc0, dweight_hh, dweight_hr, None, None, None, None

    return backward


def define(family: str) -> None:
    """The ops `<family>_forward` and `<family>_backward`: the reference, wherever no kernels are
    registered for a device."""
    FAMILIES.append(family)
    for schema, name, impl, fake in (
        (FORWARD, f"{family}_forward", _forward_reference, forward_results),
        (BACKWARD, f"{family}_backward", reference.lstm_backward, backward_results),
    ):
        library.define(schema.format(family, ""))
        library.impl(name, outside_autocast(impl), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastlstm::{name}", fake, lib=library)
    torch.library.register_autograd(
        f"fastlstm::{family}_forward",
        _make_forward_autograd(family),
        setup_context=_setup_forward,
        lib=library,
    )
    torch.library.register_autograd(
        f"fastlstm::{family}_backward",
        lambda ctx, *grads: differentiate_backward(ctx, grads, reference.lstm_backward, 13, 1),
        setup_context=keep_backward_inputs(13),
        lib=library,
    )


for _family in ("lstm", "reference"):
    define(_family)
