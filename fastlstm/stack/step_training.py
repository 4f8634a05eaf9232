"""One time step with its gradients as custom ops on the CPU: `lstm_cell_training_forward`,
`lstm_cell_training_backward`, and for the steps of a loop together `lstm_cell_weight_gradients`.

A step takes the weights as they lie, for packing them, as a sequence does (ops/layer.py), takes
longer than its few rows. A call is one node of autograd, and hands its share of the weights'
gradients to a node that all calls on the same weights have in common: what that node of `Weights`
gives is made of the rows of all steps by one product for each weight. Made step by step, it would
be as many matrices of the weights' size, each written, read and added to their sum.

x (N, I), h (N, P), c (N, H), all without the N for unbatched input; weight_ih (4H, I), weight_hh
(4H, P), biases (4H,) or None, weight_hr (P, H) or None. The tape of a step is cells (N, H), in the
accumulation dtype, and gates (N, 4H). The forward gives h_n, c_n and the tape, or nothing where its
arguments do not fit each other. What is differentiated again, or mapped by vmap, goes back by
the ops of ops/layer.py, from the same tape.
"""

import sys
import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import layer as layer_ops
from ..ops import transforms
from ..ops.define import define_op
from ..ops.library import below_autograd, plain_apply, unwrapped
from ..ops.recurrence import Results
from ..precision import accumulation_dtype
from ..weights import LSTMWeights, weights_of


class CellForward(NamedTuple):
    x: Tensor
    h: Tensor
    c: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_hr: Tensor | None


class CellResults(NamedTuple):
    h_n: Tensor
    c_n: Tensor
    cells: Tensor
    gates: Tensor


class CellBackward(NamedTuple):
    dh_n: Tensor | None
    dc_n: Tensor | None
    c: Tensor
    cells: Tensor
    gates: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    weight_hr: Tensor | None
    need_dx: bool
    need_dh: bool
    need_dc: bool


class CellGrads(NamedTuple):
    """unprojected: o * tanh(c), with a projection."""

    dx: Tensor
    dh: Tensor
    dc: Tensor
    dgates: Tensor
    unprojected: Tensor


class Shares(NamedTuple):
    """Of each step what its weights' gradients are made of; needs: of the weights in `LSTMWeights`'
    order, whether their gradients are wanted."""

    dgates: list[Tensor]
    x: list[Tensor]
    h: list[Tensor]
    dh_n: list[Tensor]
    unprojected: list[Tensor]
    needs: list[bool]


def _forward_fake(call: CellForward) -> CellResults:
    h, c = call.h, call.c
    return CellResults(
        h.new_empty(h.shape),
        c.new_empty(c.shape),
        c.new_empty(c.shape, dtype=accumulation_dtype(c.dtype)),
        c.new_empty((*c.shape[:-1], 4 * c.shape[-1])),
    )


def _backward_fake(call: CellBackward) -> CellGrads:
    c, rows, wide = call.c, call.c.shape[:-1], accumulation_dtype(call.c.dtype)
    return CellGrads(
        c.new_empty((*rows, call.weight_ih.shape[1]) if call.need_dx else (0,)),
        c.new_empty((*rows, call.weight_hh.shape[1]) if call.need_dh else (0,)),
        c.new_empty(c.shape if call.need_dc else (0,)),
        c.new_empty(call.gates.shape, dtype=wide),
        c.new_empty((0,) if call.weight_hr is None else c.shape, dtype=wide),
    )


def _weight_gradients_fake(call: Shares) -> list[Tensor]:
    (x, *_), (h, *_), H4 = call.x, call.h, call.dgates[0].shape[-1]
    shapes = LSTMWeights((H4, x.shape[-1]), (H4, h.shape[-1]), (H4,), (H4,))
    for d, u in zip(call.dh_n[:1], call.unprojected[:1], strict=True):
        shapes = shapes._replace(weight_hr=(d.shape[-1], u.shape[-1]))
    return [x.new_empty(s) for s, need in zip(shapes, call.needs, strict=True) if need]


_forward = define_op(
    "lstm_cell_training_forward", CellForward, CellResults, fake=_forward_fake, or_nothing=True
).overload
_backward = define_op("lstm_cell_training_backward", CellBackward, CellGrads, fake=_backward_fake).overload
_weight_gradients = define_op("lstm_cell_weight_gradients", Shares, list[Tensor], fake=_weight_gradients_fake).overload

_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_graph_task = torch._C._current_graph_task_id
_will_run = torch._C._will_engine_execute_node


class _Share(NamedTuple):
    """A step's entries of `Shares`, None where not there."""

    dgates: Tensor
    x: Tensor
    h: Tensor
    dh_n: Tensor | None
    unprojected: Tensor | None


def _gradients(shares: list[_Share], needs) -> list:
    """Of the weights, None where not wanted."""
    dgates, x, h, dh, unprojected = (list(of) for of in zip(*shares, strict=True))
    if LSTMWeights(*needs).weight_hr:
        # Where h_n had no gradient, neither has what was projected.
        dh = [hk.new_zeros(hk.shape) if d is None else d for d, hk in zip(dh, h, strict=True)]
    else:
        dh = unprojected = ()
    with below_autograd():
        found = iter(_weight_gradients(dgates, x, h, dh, unprojected, needs))
    return [next(found) if need else None for need in needs]


class Weights(torch.autograd.Function):
    """The weights of steps as one node, which keeps what the steps' backwards hand it, apart for
    each run of the engine."""

    @staticmethod
    def forward(ctx, *weights):
        ctx.shares, ctx.key = {}, None
        ctx.set_materialize_grads(False)
        return weights[0].new_empty(())

    def take(ctx, share) -> None:
        """Of a step whose backward runs."""
        # What goes forward from now on gets a node of its own: one that is younger than whatever
        # its input comes from, so that the engine, of all nodes that are ready, runs it first.
        _nodes.pop(ctx.key, None)
        ctx.shares.setdefault(_graph_task(), []).append(share)

    @staticmethod
    def backward(ctx, _):
        shares = ctx.shares.pop(_graph_task(), None)
        if shares is None:
            return (None,) * len(LSTMWeights._fields)
        return tuple(_gradients(shares, ctx.needs_input_grad))


# The node's results by the weights' identities, for as long as a step's graph holds them: then
# their accumulators of gradients, and with these the weights, live too.
_nodes = weakref.WeakValueDictionary()


def _hooked() -> bool:
    """Whether torch's fully_shard is in use: its hooks, on what goes into a module, look for the
    weights' gradients as soon as a call's backward has gone by."""
    states = sys.modules.get("torch.distributed._composable_state")
    return states is not None and bool(getattr(states, "_module_state_mapping", True))


def _node_of(weights, x, h) -> Tensor | None:
    """The common node's result for these weights; None where a step's gradients are to go by
    themselves: where none is wanted, and where a weight was computed, for it may be again, in
    place, before the next step."""
    if _hooked():
        return None
    needed = False
    for w in weights:
        if w is not None:
            if not w.is_leaf:
                return None
            needed = needed or w.requires_grad
    if not needed:
        return None
    # A tensor may get other data under the same identity; and what one thread does with its graphs
    # does not change how another's sums are made.
    key = (
        (threading.get_ident(), x.dtype, x.shape[-1:], h.shape[-1:]),
        *(None if w is None else (id(w), w.requires_grad) for w in weights),
    )
    node = _nodes.get(key)
    if node is None:
        node = Weights.apply(*weights)
        node.grad_fn.key = key
        _nodes[key] = node
    return node


class Step(torch.autograd.Function):
    """A step as a node of autograd: `results` are what the forward gave."""

    @staticmethod
    def forward(ctx, results, node, x, h, c, *weights):
        _, _, *tape = results
        weight_ih, weight_hh, _, _, weight_hr = weights
        ctx.save_for_backward(x, h, c, weight_ih, weight_hh, weight_hr, *tape)
        ctx.node = node
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx, dh_n, dc_n, dcells, dgates):
        _, _, need_x, need_h, need_c, *needs = ctx.needs_input_grad
        saved = ctx.saved_tensors
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or transforms.active()
            or dcells is not None
            or dgates is not None
            or any(_is_legacy_batched(d) for d in (dh_n, dc_n) if d is not None)
        ):
            needed = CellForward(need_x, need_h, need_c, *needs)
            return None, None, *_as_layer(needed, CellResults(dh_n, dc_n, dcells, dgates), *saved)
        x, h, c, weight_ih, weight_hh, weight_hr, cells, gates = saved
        with below_autograd():
            dx, dh, dc, dgates, unprojected = _backward(
                dh_n, dc_n, c, cells, gates, weight_ih, weight_hh, weight_hr, need_x, need_h, need_c
            )
        grads = dx if need_x else None, dh if need_h else None, dc if need_c else None
        share = _Share(dgates, x, h, dh_n, unprojected)
        dweights = (None,) * len(LSTMWeights._fields)
        if ctx.node is not None:
            weights = ctx.node.grad_fn
            if _will_run(weights):
                Weights.take(weights, share)
        elif any(needs):
            dweights = _gradients([share], needs)
        return None, None, *grads, *dweights


def _as_layer(
    needs: CellForward, grads: CellResults, x, h, c, weight_ih, weight_hh, weight_hr, cells, gates
) -> CellForward:
    """The gradients of x, h, c and the weights, None where not wanted, by what autograd and vmap
    take: those of a layer of one step."""

    def lead(t, dims: int):
        """(..., width) with `dims` dimensions."""
        return t if t is None else t.reshape((1,) * (dims - t.dim()) + t.shape)

    def taped(t):
        return t if t is None else lead(t, 3).unsqueeze(2)

    output = h.new_zeros(lead(h, 3).shape)  # no step entered with it
    tape = layer_ops.LayerTape(
        lead(x, 3), lead(h, 3), lead(c, 3), weight_ih, weight_hh, weight_hr, None, None, None,
        output, taped(cells), taped(gates), None, None, wide_products=True,
    )  # fmt: skip
    of_results = Results(lead(grads.h_n, 3), None, lead(grads.c_n, 3), taped(grads.cells), taped(grads.gates))
    wanted = dict.fromkeys(layer_ops.LayerForward._fields, False) | dict(
        x=needs.x, h0=needs.h, c0=needs.c, **weights_of(needs, False)._asdict()
    )
    found = layer_ops.gradients("lstm", tape, of_results, layer_ops.LayerForward(**wanted))
    return CellForward(
        found.x.reshape(x.shape) if needs.x else None,
        found.h0.reshape(h.shape) if needs.h else None,
        found.c0.reshape(c.shape) if needs.c else None,
        *weights_of(found, False),
    )


_apply = plain_apply(Step)
_FULL = (torch.float32, torch.float64)
MOST_ROWS = 8  # whose products the kernels make of weights of 16 bits as they lie


def serves(x: Tensor, weights) -> bool:
    """Whether the ops may stand for the general way, of a call that `alone.stands_alone` takes.
    weights: all five or None, of one layer."""
    # With more rows, weights of 16 bits would be widened whole, which packing them does not.
    few = x.dim() == 1 or x.shape[0] <= MOST_ROWS
    return few or (LSTMWeights(*weights).weight_hr is None and x.dtype in _FULL)


def step(x: Tensor, h: Tensor, c: Tensor, weights) -> tuple[Tensor, Tensor] | None:
    """(h, c) after one step, differentiably; None where the arguments do not fit each other."""
    with below_autograd():
        results = _forward(x, h, c, *weights)
    if not results:
        return None
    h_n, c_n, _, _ = _apply(results, _node_of(weights, x, h), *unwrapped((x, h, c, *weights)))
    return h_n, c_n
