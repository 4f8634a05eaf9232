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
from types import SimpleNamespace

import torch
from torch import Tensor

from ..ops import layer as layer_ops
from ..ops import transforms
from ..ops.library import check_one_device, library, on_one_device
from ..precision import accumulation_dtype

library.define(
    "lstm_cell_training_forward(Tensor x, Tensor h, Tensor c, Tensor weight_ih, Tensor weight_hh, "
    "Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr) "
    "-> Tensor[]"
)
library.define(
    "lstm_cell_training_backward(Tensor? dh_n, Tensor? dc_n, Tensor c, Tensor cells, Tensor gates, "
    "Tensor weight_ih, Tensor weight_hh, Tensor? weight_hr, bool need_dx, bool need_dh, "
    "bool need_dc) -> (Tensor dx, Tensor dh, Tensor dc, Tensor dgates, Tensor unprojected)"
)
library.define(
    "lstm_cell_weight_gradients(Tensor[] dgates, Tensor[] x, Tensor[] h, Tensor[] dh_n, "
    "Tensor[] unprojected, bool[] needs) -> Tensor[]"
)
_forward = torch.ops.fastlstm.lstm_cell_training_forward.default
_backward = torch.ops.fastlstm.lstm_cell_training_backward.default
_weight_gradients = torch.ops.fastlstm.lstm_cell_weight_gradients.default

_below_autograd = torch._C._AutoDispatchBelowAutograd
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_graph_task = torch._C._current_graph_task_id
_will_run = torch._C._will_engine_execute_node


def _gradients(shares, needs) -> list:
    """Of the weights, None where not wanted. shares: of each step dgates, x, h, dh_n or None, and
    unprojected or None."""
    dgates, x, h, dh, unprojected = (list(of) for of in zip(*shares, strict=True))
    if needs[4]:
        # Where h_n had no gradient, neither has what was projected.
        dh = [hk.new_zeros(hk.shape) if d is None else d for d, hk in zip(dh, h, strict=True)]
    else:
        dh = unprojected = ()
    with _below_autograd():
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
            return (None,) * 5
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
        weight_ih, weight_hh, _, _, weight_hr = weights
        ctx.save_for_backward(x, h, c, weight_ih, weight_hh, weight_hr, *results[2:])
        ctx.node = node
        ctx.present = [w is not None for w in weights]
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx, dh_n, dc_n, dcells, dgates):
        needs = ctx.needs_input_grad[1:]
        saved = ctx.saved_tensors
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or transforms.active()
            or dcells is not None
            or dgates is not None
            or any(_is_legacy_batched(d) for d in (dh_n, dc_n) if d is not None)
        ):
            return None, None, *_as_layer(ctx, needs[1:], (dh_n, dc_n, dcells, dgates), saved)
        x, h, c, weight_ih, weight_hh, weight_hr, cells, gates = saved
        with _below_autograd():
            dx, dh, dc, dgates, unprojected = _backward(
                dh_n, dc_n, c, cells, gates, weight_ih, weight_hh, weight_hr, *needs[1:4]
            )
        grads = dx if needs[1] else None, dh if needs[2] else None, dc if needs[3] else None
        share = dgates, x, h, dh_n, unprojected
        dweights = (None,) * 5
        if ctx.node is not None:
            weights = ctx.node.grad_fn
            if _will_run(weights):
                Weights.take(weights, share)
        elif any(needs[4:]):
            dweights = _gradients([share], needs[4:])
        return None, None, *grads, *dweights


def _as_layer(ctx, needs, grads, saved) -> list:
    """The gradients of x, h, c and the weights, None where not wanted, by what autograd and vmap
    take: those of a layer of one step."""

    def lead(t, dims: int):
        """(..., width) with `dims` dimensions."""
        return t if t is None else t.reshape((1,) * (dims - t.dim()) + t.shape)

    x, h, c, weight_ih, weight_hh, weight_hr, cells, gates = saved
    dh_n, dc_n, dcells, dgates = grads

    def taped(t):
        return t if t is None else lead(t, 3).unsqueeze(2)

    layer_ctx = SimpleNamespace(
        saved_tensors=(
            lead(x, 3), lead(h, 3), lead(c, 3), weight_ih, weight_hh, weight_hr, None, None, None,
            h.new_zeros(lead(h, 3).shape), taped(cells), taped(gates), None, None,
        ),
        needs_input_grad=[*needs, *[False] * 5],
        present=[*ctx.present, *[False] * 5],
        wide_products=True,
        has_tape=True,
    )  # fmt: skip
    found = layer_ops.gradients(
        "lstm", layer_ctx, lead(dh_n, 3), None, lead(dc_n, 3), taped(dcells), taped(dgates)
    )
    dstates = [
        d.reshape(t.shape) if need else None
        for d, t, need in zip(found[:3], (x, h, c), needs, strict=False)
    ]
    return [*dstates, *found[3:8]]


def _forward_fake(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr):
    if not on_one_device(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr):
        return []
    wide = accumulation_dtype(c.dtype)
    gates = c.new_empty((*c.shape[:-1], 4 * c.shape[-1]))
    cells = c.new_empty(c.shape, dtype=wide)
    return [h.new_empty(h.shape), c.new_empty(c.shape), cells, gates]


def _backward_fake(
    dh_n, dc_n, c, cells, gates, weight_ih, weight_hh, weight_hr, need_dx, need_dh, need_dc
):
    check_one_device(dh_n, dc_n, c, cells, gates, weight_ih, weight_hh, weight_hr)
    rows, wide = c.shape[:-1], accumulation_dtype(c.dtype)
    return (
        c.new_empty((*rows, weight_ih.shape[1]) if need_dx else (0,)),
        c.new_empty((*rows, weight_hh.shape[1]) if need_dh else (0,)),
        c.new_empty(c.shape if need_dc else (0,)),
        c.new_empty(gates.shape, dtype=wide),
        c.new_empty((0,) if weight_hr is None else c.shape, dtype=wide),
    )


def _weight_gradients_fake(dgates, x, h, dh_n, unprojected, needs):
    check_one_device(*dgates, *x, *h, *dh_n, *unprojected)
    H4 = dgates[0].shape[-1]
    shapes = [(H4, x[0].shape[-1]), (H4, h[0].shape[-1]), (H4,), (H4,)]
    shapes += [(d.shape[-1], u.shape[-1]) for d, u in zip(dh_n[:1], unprojected[:1], strict=True)]
    return [x[0].new_empty(s) for s, need in zip(shapes, needs, strict=False) if need]


for _name, _fake in (
    ("lstm_cell_training_forward", _forward_fake),
    ("lstm_cell_training_backward", _backward_fake),
    ("lstm_cell_weight_gradients", _weight_gradients_fake),
):
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=library)

_FULL = (torch.float32, torch.float64)
MOST_ROWS = 8  # whose products the kernels make of weights of 16 bits as they lie


def serves(x: Tensor, weights) -> bool:
    """Whether the ops may stand for the general way, of a call that `alone.stands_alone` takes.
    weights: all five or None, of one layer."""
    # With more rows, weights of 16 bits would be widened whole, which packing them does not.
    few = x.dim() == 1 or x.shape[0] <= MOST_ROWS
    return few or (weights[4] is None and x.dtype in _FULL)


def step(x: Tensor, h: Tensor, c: Tensor, weights) -> tuple[Tensor, Tensor] | None:
    """(h, c) after one step, differentiably; None where the arguments do not fit each other."""
    with _below_autograd():
        results = _forward(x, h, c, *weights)
    return Step.apply(results, _node_of(weights, x, h), x, h, c, *weights)[:2] if results else None
