"""The custom ops of layers with checkpoints: schemas, fake kernels, autograd. What they compute
stands in passes.py.

Of L layers and D directions: weights, those of a layer and direction together, without what is not
there; norms and h_mask (L*D, N, P) as the variants' (stack/variant.py), empty and None for plain
layers; seed (1,) or None; layer: the number of the first among the stack's.
"""

import torch
from torch import Tensor

from ...ops.library import library
from ...precision import accumulation_dtype
from .. import variant as variant_layers
from . import passes
from .piece_layers import NAMES, Settings, norms_by_layer

_TENSORS = (
    "Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor[] norms, Tensor? h_mask, "
    "Tensor? seed, Tensor? lengths, Tensor? reset_mask"
)
_SETTINGS = (
    "str family, int directions, int biases, bool projected, float zoneout_h, float zoneout_c, "
    "int layer, bool wide_products"
)
FORWARD = (
    f"checkpointed_forward({_TENSORS}, {_SETTINGS}, bool save_cells, int every) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor kept_h, Tensor kept_c)"
)
BACKWARD = (
    "checkpointed_backward(Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, "
    f"{_TENSORS}, {_SETTINGS}, Tensor kept_h, Tensor kept_c, int every, bool need_dx, "
    "bool need_dstates, bool[] need_dweights, bool[] need_dnorms) "
    "-> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights, Tensor[] dnorms)"
)
INPUTS = 9 + len(Settings._fields) + 2  # of the forward


def _forward_fake(*args):
    x, h0, c0 = args[:3]
    *_, save_cells, every = args
    (T, N, _), count = x.shape, (x.shape[0] + every - 1) // every
    D, wide = Settings(*args[9:-2]).directions, accumulation_dtype(x.dtype)
    return (
        x.new_empty((T, N, D * h0.shape[2])),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        x.new_empty((T, N, D, c0.shape[2]) if save_cells else (0,), dtype=wide),
        h0.new_empty((count, *h0.shape)),
        c0.new_empty((count, *c0.shape), dtype=wide),
    )


def _backward_fake(*args):
    x, h0, c0, weights, norms = args[4:9]
    need_dx, _, need_dweights, need_dnorms = args[-4:]
    return (
        x.new_empty(x.shape if need_dx else (0,)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        *(
            [w.new_empty(w.shape if needed else (0,)) for w, needed in zip(ws, needs, strict=True)]
            for ws, needs in ((weights, need_dweights), (norms, need_dnorms))
        ),
    )


def _setup(ctx, inputs, output):
    x, h0, c0, weights, norms, *rest = inputs[:9]
    kept = output[4:]
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(x, h0, c0, *rest, *kept, *weights, *norms)
    ctx.norms = len(norms)
    ctx.settings, (ctx.save_cells, ctx.every) = inputs[9:-2], inputs[-2:]
    ctx.set_materialize_grads(False)


def _derivative(ctx, doutput, dh_n, dc_n, dcells, *_):
    x, h0, c0, *rest = ctx.saved_tensors[:7]
    kept, weights = ctx.saved_tensors[7:9], ctx.saved_tensors[9:]
    weights, norms = (list(w) for w in (weights[: -ctx.norms or None], weights[-ctx.norms :]))
    norms = norms if ctx.norms else []
    need_dx, need_dh0, need_dc0, need_dweights, need_dnorms, *_ = ctx.needs_input_grad
    need_dweights, need_dnorms = need_dweights or [], need_dnorms or []
    nothing = (None,) * (INPUTS - 5)
    grads = doutput, dh_n, dc_n, dcells
    if torch.is_grad_enabled():
        inputs = [t.view_as(t) if t.requires_grad else t for t in (x, h0, c0, *weights, *norms)]
        count = 3 + len(weights)
        given = *inputs[:3], inputs[3:count], inputs[count:], *rest
        found = _grads(plain(*given, Settings(*ctx.settings), ctx.save_cells), grads, inputs)
        return *found[:3], found[3:count], found[count:], *nothing
    dx, dh0, dc0, *dweights = torch.ops.fastlstm.checkpointed_backward(
        *grads, x, h0, c0, weights, norms, *rest, *ctx.settings, *kept, ctx.every, need_dx,
        need_dh0 or need_dc0, need_dweights, need_dnorms,
    )  # fmt: skip
    dweights = (
        [g if need else None for g, need in zip(ds, needs, strict=True)]
        for ds, needs in zip(dweights, (need_dweights, need_dnorms), strict=True)
    )
    return dx if need_dx else None, dh0, dc0, *dweights, *nothing


def plain(
    x, h0, c0, weights, norms, h_mask, seed, lengths, reset_mask, settings: Settings, save_cells
):
    """The same forward with the tape of all steps kept: what a second derivative goes through."""
    s, states = settings, []
    weights, norms = s.by_layer(weights), norms_by_layer(norms, h0.shape[0])
    is_variant = norms[0][0] is not None or h_mask is not None or s.zoneout_h or s.zoneout_c
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        for k in range(0, len(weights), s.directions):
            part = slice(k, k + s.directions)
            if is_variant:
                x, h, c, cells, _ = variant_layers.run_layer(
                    s.family, x, h0[part], c0[part], weights[part], norms[part],
                    None if h_mask is None else h_mask[part], lengths, reset_mask, seed,
                    (s.zoneout_h, s.zoneout_c), s.layer + k // s.directions, 0, s.wide_products,
                    save_cells,
                )  # fmt: skip
            else:
                reverse = weights[k + 1] if s.directions == 2 else (None,) * len(NAMES)
                switches = s.wide_products, True, save_cells
                x, h, c, cells, _ = s.op("layer_forward")(
                    x, h0[part], c0[part], *weights[k], *reverse, lengths, reset_mask, *switches
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
    (FORWARD, "checkpointed_forward", passes.forward, _forward_fake),
    (BACKWARD, "checkpointed_backward", passes.backward, _backward_fake),
):
    library.define(_schema)
    library.impl(_name, _impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=library)
torch.library.register_autograd(
    "fastlstm::checkpointed_forward", _derivative, setup_context=_setup, lib=library
)
