"""The custom ops of layers with checkpoints: schemas, fake kernels, autograd. What they compute
stands in checkpoint_passes.py."""

import torch
from torch import Tensor

from . import checkpoint_passes, reference
from .checkpoint_passes import NAMES, by_layer
from .ops import library

FORWARD = (
    "checkpointed_forward(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? lengths, "
    "Tensor? reset_mask, str family, int directions, int biases, bool projected, "
    "bool wide_products, bool save_cells, int every) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor kept_h, Tensor kept_c)"
)
BACKWARD = (
    "checkpointed_backward(Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor x, "
    "Tensor h0, Tensor c0, Tensor[] weights, Tensor? lengths, Tensor? reset_mask, Tensor kept_h, "
    "Tensor kept_c, str family, int directions, int biases, bool projected, bool wide_products, "
    "int every, bool need_dx, bool need_dstates, bool[] need_dweights) "
    "-> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights)"
)
SWITCHES = 7  # of the forward, after its tensors


def _forward_fake(
    x, h0, c0, weights, lengths, reset_mask, family, directions, biases, projected, wide_products,
    save_cells, every,
):  # fmt: skip
    (T, N, _), count = x.shape, (x.shape[0] + every - 1) // every
    cells = (T, N, directions, c0.shape[2]) if save_cells else (0,)
    return (
        x.new_empty((T, N, directions * h0.shape[2])),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        x.new_empty(cells, dtype=reference.accumulation_dtype(x.dtype)),
        h0.new_empty((count, *h0.shape)),
        c0.new_empty((count, *c0.shape)),
    )


def _backward_fake(
    doutput, dh_n, dc_n, dcells, x, h0, c0, weights, lengths, reset_mask, kept_h, kept_c, family,
    directions, biases, projected, wide_products, every, need_dx, need_dstates, need_dweights,
):  # fmt: skip
    return (
        x.new_empty(x.shape if need_dx else (0,)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        [
            w.new_empty(w.shape if needed else (0,))
            for w, needed in zip(weights, need_dweights, strict=True)
        ],
    )


def _setup(ctx, inputs, output):
    x, h0, c0, weights, lengths, reset_mask, *switches = inputs
    ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(x, h0, c0, lengths, reset_mask, *output[4:], *weights)
    ctx.switches = switches
    ctx.set_materialize_grads(False)


def _derivative(ctx, doutput, dh_n, dc_n, dcells, *_):
    x, h0, c0, lengths, reset_mask, kept_h, kept_c, *weights = ctx.saved_tensors
    *settings, save_cells, every = ctx.switches
    need_dx, need_dh0, need_dc0, need_dweights, *_ = ctx.needs_input_grad
    rest = (None,) * (2 + SWITCHES)
    if torch.is_grad_enabled():
        inputs = [t.view_as(t) if t.requires_grad else t for t in (x, h0, c0, *weights)]
        results = _plain(*inputs[:3], inputs[3:], lengths, reset_mask, *settings, save_cells)
        found = _grads(results, (doutput, dh_n, dc_n, dcells), inputs)
        return (*found[:3], found[3:], *rest)
    dx, dh0, dc0, dweights = torch.ops.fastlstm.checkpointed_backward(
        doutput, dh_n, dc_n, dcells, x, h0, c0, weights, lengths, reset_mask, kept_h, kept_c,
        *settings, every, need_dx, need_dh0 or need_dc0, need_dweights,
    )  # fmt: skip
    dweights = [g if need else None for g, need in zip(dweights, need_dweights, strict=True)]
    return dx if need_dx else None, dh0, dc0, dweights, *rest


def _plain(
    x, h0, c0, weights, lengths, reset_mask, family, directions, biases, projected, wide_products,
    save_cells,
):  # fmt: skip
    """The same forward with the tape of all steps kept: what a second derivative goes through."""
    stacked, states = by_layer(weights, biases, projected), []
    op = getattr(torch.ops.fastlstm, f"{family}_layer_forward").default
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        for k in range(0, len(stacked), directions):
            reverse = stacked[k + 1] if directions == 2 else (None,) * len(NAMES)
            part = slice(k, k + directions)
            switches = wide_products, True, save_cells
            x, h, c, cells, _ = op(
                x, h0[part], c0[part], *stacked[k], *reverse, lengths, reset_mask, *switches
            )
            states.append((h, c))
        h_n, c_n = (torch.cat(s) for s in zip(*states, strict=True))
    return x, h_n, c_n, cells


def _grads(results, grads, inputs) -> list[Tensor | None]:
    wanted = [t for t in inputs if t.requires_grad]
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
    found = iter(
        torch.autograd.grad(
            [r for r, _ in pairs],
            wanted,
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if t.requires_grad else None for t in inputs]


for _schema, _name, _impl, _fake in (
    (FORWARD, "checkpointed_forward", checkpoint_passes.forward, _forward_fake),
    (BACKWARD, "checkpointed_backward", checkpoint_passes.backward, _backward_fake),
):
    library.define(_schema)
    library.impl(_name, _impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=library)
torch.library.register_autograd(
    "fastlstm::checkpointed_forward", _derivative, setup_context=_setup, lib=library
)
