"""The custom ops of the recurrence of one layer (all directions, all steps): schema, shapes,
autograd, weight gradients.

Each backend family is a pair of ops with one schema, `<family>_forward` and `<family>_backward`;
layer_ops.py puts the input product around it:

* `fastlstm::lstm_*` is what runs by default. A device's compiled kernels register themselves for it
  (csrc/torch/bindings.cpp for the CPU, gpu_ops.py for CUDA); one without any runs the reference.
* `fastlstm::reference_*` is always `reference.py`.
* A backend that shares its devices with another has a family of its own, such as
  `fastlstm::triton_*` (gpu_ops.py).

The tape (cells, gates) is the same for all, so a forward of one family can be differentiated by
another. Argument shapes are those of `reference.lstm_forward` and `reference.lstm_backward`.
"""

import functools

import torch
from torch import Tensor

from . import reference

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


def outside_autocast(function):
    """`function` run without autocast: what is computed in Python, by torch's own products, would
    else take autocast's dtype where a backward is called inside of it."""

    @functools.wraps(function)
    def run(*args):
        with torch._C._DisableAutocast():
            return function(*args)

    return run


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


def check_one_device(*tensors: Tensor | None) -> None:
    """For the shapes-only kernels, which torch runs for real tensors beside a meta one, too."""
    devices = sorted({str(t.device) for t in tensors if t is not None})
    if len(devices) > 1:
        raise RuntimeError(f"fastlstm: arguments on {' and '.join(devices)}, expected one device")


def forward_results(
    gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, save_tape, save_cells
):
    """Tensors of the forward's shapes, uninitialised: also its shapes-only kernel."""
    check_one_device(gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask)
    T, N, D, H4 = gates_x.shape
    H, P = c0.shape[-1], h0.shape[-1]
    wide = reference.accumulation_dtype(h0.dtype)
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
    wide = reference.accumulation_dtype(h0.dtype)
    return (
        gates.new_empty(gates.shape, dtype=wide if wide_gates else h0.dtype),
        h0.new_empty(h0.shape, dtype=c0.dtype),
        c0.new_empty(c0.shape),
        h0.new_empty((T, N, D, h0.shape[-1]) if weight_hr is not None else (0,), dtype=wide),
    )


def product_of_steps(dy: Tensor, x: Tensor) -> Tensor:
    """sum over t, n of dy[t, n, :] x[t, n, :]^T: (T, N, A), (T, N, B) -> (A, B), in dy's dtype."""
    # reshape: see layer_ops.py
    rows = dy.shape[0] * dy.shape[1]
    return dy.reshape(rows, dy.shape[2]).t() @ x.to(dy.dtype).reshape(rows, x.shape[2])


def weight_hh_grad(dgates_x, output, h0, lengths, reset_mask):
    """dW_hh (D, 4H, P): one large product per direction, of dgates with the h that entered each
    step."""
    T, _, D, _ = dgates_x.shape
    P = h0.shape[-1]
    grads = []
    for d in range(D):
        dgates, h, first = dgates_x[:, :, d], output[..., d * P : (d + 1) * P], h0[d]
        if T == 0:
            grads.append(dgates.new_zeros((dgates.shape[-1], P)))
        elif lengths is None and reset_mask is None:
            # The entering states are the output shifted by a step: views do, save for the first
            # step's h0.
            start, rest = (T - 1, slice(0, T - 1)) if d else (0, slice(1, T))
            before = slice(1, T) if d else slice(0, T - 1)
            grad = dgates[start].t() @ first.to(dgates.dtype)
            grads.append(grad if T == 1 else grad + product_of_steps(dgates[rest], h[before]))
        else:
            entering = reference.entering_states(h, first, reset_mask, lengths, d == 1)
            grads.append(product_of_steps(dgates, entering))
    return torch.stack(grads)


def weight_hr_grad(dhidden, cells, gates):
    """dW_hr (D, P, H): of the gradients that arrived at h_t with the unprojected o * tanh(c_t)."""
    H = cells.shape[-1]
    unprojected = gates[..., 3 * H :].to(cells.dtype) * cells.tanh()
    return torch.stack(
        [product_of_steps(dhidden[:, :, d], unprojected[:, :, d]) for d in range(dhidden.shape[2])]
    )


def _setup_forward(ctx, inputs, output):
    gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, save_tape, _ = inputs
    y, _, _, cells, gates = output
    ctx.save_for_backward(h0, c0, weight_hh, weight_hr, lengths, reset_mask, y, cells, gates)
    ctx.wide_gates = gates_x.dtype != h0.dtype
    ctx.has_tape = save_tape
    ctx.set_materialize_grads(False)


def check_tape(ctx, op: str) -> None:
    if not ctx.has_tape:
        raise RuntimeError(
            f"fastlstm::{op} was called with save_tape=False, so it cannot be differentiated; "
            "call it with save_tape=True"
        )


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


@outside_autocast
def differentiate_backward(ctx, grads, rule, tensors: int, scalars: int):
    """The derivative of a backward op, by autograd through `rule`, the same in plain torch;
    differentiable again.

    The op's arguments are `tensors` tensors (ctx.saved_tensors) and then `scalars` others
    (ctx.scalars).
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh views, so that autograd.grad below stops here and not at whatever made the tensors.
        inputs = [
            x.view_as(x) if x is not None and x.requires_grad else x for x in ctx.saved_tensors
        ]
        results = rule(*inputs, *ctx.scalars)
        wanted = [k for k in range(tensors) if ctx.needs_input_grad[k] and inputs[k] is not None]
        pairs = [
            (r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad
        ]
        found = [None] * len(wanted)
        if pairs and wanted:
            found = torch.autograd.grad(
                [r for r, _ in pairs],
                [inputs[k] for k in wanted],
                [g for _, g in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
    by_place = dict(zip(wanted, found, strict=True))
    return tuple(by_place.get(k) for k in range(tensors + scalars))


def keep_backward_inputs(tensors: int):
    """A setup_context that saves a backward op's arguments for `differentiate_backward`."""

    def setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.scalars = inputs[tensors:]
        ctx.set_materialize_grads(False)

    return setup


library = torch.library.Library("fastlstm", "DEF")


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
