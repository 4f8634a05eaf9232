"""The custom ops of layers with checkpoints; calls.py describes their arguments, passes.py computes
them."""

import torch

from ...fields import only
from ...ops.define import define_op
from ...ops.layer import LayerForward
from ...ops.library import op
from ...ops.lists import where_needed
from ...ops.recurrence import Results
from ...precision import accumulation_dtype
from ...weights import LSTMWeights
from .. import variant as variant_layers
from . import calls, passes
from .calls import (
    CheckpointedBackward,
    CheckpointedForward,
    CheckpointedGrads,
    CheckpointedResults,
    CheckpointedTape,
)


def _forward_fake(call: CheckpointedForward) -> CheckpointedResults:
    x, h0, c0, D = call.x, call.h0, call.c0, call.directions
    (T, N, _), wide = x.shape, accumulation_dtype(x.dtype)
    return CheckpointedResults(
        x.new_empty((T, N, D * h0.shape[2])),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        x.new_empty((T, N, D, c0.shape[2]) if call.save_cells else (0,), dtype=wide),
        *passes.kept_states(call),
    )


def _backward_fake(call: CheckpointedBackward) -> CheckpointedGrads:
    def like(tensors, needs):
        return [t.new_empty(t.shape if need else (0,)) for t, need in zip(tensors, needs, strict=True)]

    return CheckpointedGrads(
        call.x.new_empty(call.x.shape if call.need_dx else (0,)),
        call.h0.new_empty(call.h0.shape),
        call.c0.new_empty(call.c0.shape),
        like(call.weights, call.need_dweights),
        like(call.norms, call.need_dnorms),
    )


def _gradients(tape: CheckpointedTape, grads: CheckpointedResults, needs: CheckpointedForward) -> CheckpointedForward:
    need_dweights, need_dnorms = list(needs.weights or []), list(needs.norms or [])
    of_results = grads.output, grads.h_n, grads.c_n, grads.cells
    if torch.is_grad_enabled():
        return only(CheckpointedForward, **_again(tape, of_results))
    given = tape._asdict()
    del given["save_cells"]
    doutput, dh_n, dc_n, dcells = of_results
    call = CheckpointedBackward(
        doutput=doutput, dh_n=dh_n, dc_n=dc_n, dcells=dcells, need_dx=needs.x,
        need_dstates=needs.h0 or needs.c0, need_dweights=need_dweights, need_dnorms=need_dnorms,
        **given,
    )  # fmt: skip
    found = CheckpointedGrads(*op("checkpointed_backward")(*call))
    return only(
        CheckpointedForward,
        x=found.dx if needs.x else None,
        h0=found.dh0,
        c0=found.dc0,
        weights=where_needed(found.dweights, need_dweights),
        norms=where_needed(found.dnorms, need_dnorms),
    )


def _again(tape: CheckpointedTape, grads) -> dict:
    """The gradients by autograd through the forward with a tape of all steps, so that they can be
    differentiated again."""

    def view(t):
        return t.view_as(t) if t.requires_grad else t

    leaves = tape._replace(
        x=view(tape.x),
        h0=view(tape.h0),
        c0=view(tape.c0),
        weights=list(map(view, tape.weights)),
        norms=list(map(view, tape.norms)),
    )
    inputs = [leaves.x, leaves.h0, leaves.c0, *leaves.weights, *leaves.norms]
    wanted = [t for t in inputs if t.requires_grad]
    pairs = [(r, g) for r, g in zip(plain(leaves), grads, strict=True) if g is not None]
    results, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(results, wanted, given, create_graph=True, allow_unused=True))

    def gradient(t):
        return next(found) if t.requires_grad else None

    return {
        "x": gradient(leaves.x),
        "h0": gradient(leaves.h0),
        "c0": gradient(leaves.c0),
        "weights": list(map(gradient, leaves.weights)),
        "norms": list(map(gradient, leaves.norms)),
    }


def plain(call: CheckpointedForward | CheckpointedTape):
    """output, h_n, c_n and cells of the same forward, by ops that keep a tape of all steps."""
    x, D, states = call.x, call.directions, []
    nothing = LSTMWeights(None, None)
    layers = zip(calls.weights_of_layers(call), calls.norms_of_layers(call), strict=True)
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        for k, (weights, norms) in enumerate(layers):
            rows = slice(k * D, (k + 1) * D)
            h, c = call.h0[rows], call.c0[rows]
            if calls.is_variant(call):
                results = variant_layers.run_layer(
                    call.family, x, h, c, weights, norms,
                    None if call.h_mask is None else call.h_mask[rows], call.lengths,
                    call.reset_mask, call.seed, (call.zoneout_h, call.zoneout_c), call.layer + k,
                    call.wide_products, call.save_cells,
                )  # fmt: skip
            else:
                forward, reverse = (*weights, nothing)[:2]
                results = op(f"{call.family}_layer_forward")(
                    *LayerForward(
                        x, h, c, *forward, *reverse, call.lengths, call.reset_mask,
                        call.wide_products, save_tape=True, save_cells=call.save_cells,
                    )
                )  # fmt: skip
            results = Results(*results)
            x = results.output
            states.append((results.h_n, results.c_n))
    h_n, c_n = (torch.cat(s) for s in zip(*states, strict=True))
    return x, h_n, c_n, results.cells


define_op(
    "checkpointed_forward",
    CheckpointedForward,
    CheckpointedResults,
    run=passes.forward,
    fake=_forward_fake,
    tape=CheckpointedTape,
    gradients=_gradients,
    constants=("kept_h", "kept_c"),
)
define_op(
    "checkpointed_backward",
    CheckpointedBackward,
    CheckpointedGrads,
    run=passes.backward,
    fake=_backward_fake,
)
