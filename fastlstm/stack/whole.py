"""A whole stack as one op on the CPU: beside a short sequence's work, an op and a node of autograd
for each layer, and what stands around them in Python, are most of a call.

Without a gradient, `lstm_inference`: x (T, N, I), (N, T, I) with batch_first, or (T, I) unbatched;
h0 (L*D, N, P), c0 (L*D, N, H), without the N where x has none, or None for zeros. weights: of each
layer and direction weight_ih (4H, inputs), weight_hh (4H, P), both biases (4H,) or neither,
weight_hr (P, H) or not; the matrices may be bfloat16 beside float32. The op checks shapes and
dtypes itself; what it refuses, the general way takes, or refuses in nn.LSTM's words.

With gradients, `lstm_training_forward` and `lstm_training_backward`, and one node of autograd. The
arguments of the forward are those of `lstm_inference`, and `needs`: for x, h0, c0 and every weight
whether its gradient is wanted. It gives output, h_n, c_n and its tape: of each layer from the
lowest with a gradient to give, its input (except the first layer's), cells (T, N, D, H) and gates
(T, N, D, 4H), all time-major; and last the output again, which nobody else writes into. The
backward takes of each of these layers the matrices, all weight_ih, then all weight_hh, then all
weight_hr, and gives the gradients that `needs` asks for, in its order.

What is differentiated again, or mapped by vmap, goes back layer by layer, by the ops of
ops/layer.py, from the same tape.
"""

import torch
from torch import Tensor

from ..ops import layer as layer_ops
from ..ops import transforms
from ..ops.library import check_one_device, library
from ..ops.recurrence import Results
from ..precision import accumulation_dtype

_INFERENCE = (
    "lstm_inference(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, int layers, "
    "bool bidirectional, bool batch_first, bool wide_products) "
    "-> (Tensor output, Tensor h_n, Tensor c_n)"
)


def _inference_fake(x, h0, c0, weights, layers, bidirectional, batch_first, wide_products):
    check_one_device(x, h0, c0, *weights)
    D = 2 if bidirectional else 1
    H, P = weights[1].shape[0] // 4, weights[1].shape[1]
    if x.dim() == 2:
        rows, output = (), x.new_empty((x.shape[0], D * P))
    else:
        T, N = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
        rows, output = (N,), x.new_empty((T, N, D * P))
        output = output.transpose(0, 1) if batch_first else output
    return output, x.new_empty((layers * D, *rows, P)), x.new_empty((layers * D, *rows, H))


library.define(_INFERENCE)
torch.library.register_fake("fastlstm::lstm_inference", _inference_fake, lib=library)

lstm_inference = torch.ops.fastlstm.lstm_inference.default

_STACK = "int layers, bool bidirectional, bool batch_first, bool wide_products, bool[] needs"

library.define(
    f"lstm_training_forward(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, {_STACK}) "
    "-> Tensor[]"
)
library.define(
    "lstm_training_backward(Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? x, Tensor? h0, "
    f"Tensor? c0, Tensor[] matrices, Tensor output, Tensor[] tape, {_STACK}) -> Tensor[]"
)
_forward = torch.ops.fastlstm.lstm_training_forward.default
_backward = torch.ops.fastlstm.lstm_training_backward.default

_below_autograd = torch._C._AutoDispatchBelowAutograd
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def _lowest(needs, per_layer: int) -> int:
    """The first layer that has a gradient to give."""
    return 0 if True in needs[:3] else (needs.index(True) - 3) // per_layer


class Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sizes, x, h0, c0, *weights):
        needs = ctx.needs_input_grad[1:]
        with _below_autograd():
            results = _forward(x, h0, c0, weights, *sizes, needs)
        _, _, _, *tape, output = results
        per_layer = len(weights) // sizes[0]
        each = per_layer // 2 if sizes[1] else per_layer
        lowest = _lowest(needs, per_layer)
        first = lowest * per_layer
        matrices = *weights[first::each], *weights[first + 1 :: each]
        if each % 2:
            matrices += weights[first + each - 1 :: each]
        ctx.save_for_backward(None if lowest else x, h0, c0, output, *matrices, *tape)
        ctx.sizes, ctx.lowest, ctx.each, ctx.matrices = sizes, lowest, each, len(matrices)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx, doutput, dh_n, dc_n, *dtape):
        needs = ctx.needs_input_grad[1:]
        x, h0, c0, output, *saved = ctx.saved_tensors
        parts = x, h0, c0, saved[: ctx.matrices], output, saved[ctx.matrices :]
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or transforms.active()
            or any(d is not None for d in dtape)
            or any(_is_legacy_batched(d) for d in (doutput, dh_n, dc_n) if d is not None)
        ):
            return None, *_by_layers(ctx, needs, (doutput, dh_n, dc_n), dtape, *parts)
        with _below_autograd():
            found = iter(_backward(doutput, dh_n, dc_n, *parts, *ctx.sizes, needs))
        return None, *[next(found) if need else None for need in needs]


class _Layout:
    """Sequences and states as the caller has them, and as the ops of a layer take them."""

    def __init__(self, sizes, output: Tensor):
        self.layers, bidirectional, self.batch_first, self.wide_products = sizes
        self.D, self.batched = 2 if bidirectional else 1, output.dim() == 3

    def time_major(self, sequence):
        if sequence is None or (self.batched and not self.batch_first):
            return sequence
        return sequence.transpose(0, 1) if self.batched else sequence.unsqueeze(1)

    def as_given(self, sequence):
        if self.batched:
            return sequence.transpose(0, 1) if self.batch_first else sequence
        return sequence.squeeze(1)

    def states_of(self, k: int, states):
        if states is None:
            return None
        states = states if self.batched else states.unsqueeze(1)
        return states[k * self.D : (k + 1) * self.D]

    def states_as_given(self, of_layers):
        states = torch.cat(of_layers)
        return states if self.batched else states.squeeze(1)


def _by_layers(ctx, needs, grads, dtape, x, h0, c0, matrices, output, tape):
    """The gradients of x, h0, c0 and the weights, None where not wanted, by what autograd and vmap
    take.

    Args:
        grads: doutput, dh_n, dc_n. dtape: gradients of the tape, from a backward that was itself
        differentiated. None where zero.
    """
    layout, each, lowest = _Layout(ctx.sizes, output), ctx.each, ctx.lowest
    *dtape, dagain = dtape
    if dagain is not None:
        grads = dagain if grads[0] is None else grads[0] + dagain, *grads[1:]
    D, L = layout.D, layout.layers
    projected, kept = each % 2 == 1, (L - lowest) * D
    y, dy = layout.time_major(output), layout.time_major(grads[0])
    H, P = tape[-1].shape[3] // 4, y.shape[2] // D
    present = [True, True, each >= 4, each >= 4, projected]
    places = [i for i in range(5) if present[i]]  # of a direction's weights in the layer's five
    absent = [False] * 5 * (2 - D)
    found, dh0, dc0 = [None] * len(needs), [], []
    for k in range(L - 1, lowest - 1, -1):
        *tape, cells, gates = tape
        *dtape, dcells, dgates = dtape
        below, dbelow = layout.time_major(x), None
        if k:
            *tape, below = tape
            *dtape, dbelow = dtape
        h, c = layout.states_of(k, h0), layout.states_of(k, c0)
        h = y.new_zeros(D, y.shape[1], P) if h is None else h
        c = y.new_zeros(D, y.shape[1], H) if c is None else c
        of_layer, wanted = [], []
        for d in range(D):
            first = (k - lowest) * D + d
            ih, hh, *hr = matrices[first::kept]
            of_layer += [ih, hh, hr[0] if projected else None]
            at = 3 + (k * D + d) * each
            asked = dict(zip(places, needs[at : at + each], strict=True))
            wanted += [asked.get(i, False) for i in range(5)]
        layer_tape = layer_ops.LayerTape(
            below, h, c, *of_layer, *[None] * 3 * (2 - D), y, cells, gates, None, None,
            layout.wide_products,
        )  # fmt: skip
        wanted = layer_ops.LayerForward(
            needs[0] if k == 0 else k > lowest, needs[1], needs[2], *wanted, *absent, *[False] * 5
        )
        of_states = (layout.states_of(k, g) for g in grads[1:])
        of_results = Results(dy, *of_states, dcells, dgates)
        dx, dh, dc, *dweights = layer_ops.gradients("lstm", layer_tape, of_results, wanted)
        for d in range(D):
            at = 3 + (k * D + d) * each
            found[at : at + each] = [dweights[5 * d + i] for i in places]
        dh0.insert(0, dh)
        dc0.insert(0, dc)
        y, dy = below, dx
        if dy is not None and dbelow is not None:
            dy = dy + dbelow
    if needs[0]:
        found[0] = layout.as_given(dy)
    if needs[1]:
        found[1] = layout.states_as_given(dh0)
    if needs[2]:
        found[2] = layout.states_as_given(dc0)
    return found


def _sizes(sequence: Tensor, bidirectional: bool, batch_first: bool):
    """T, (N,) or () without rows, D."""
    T, *rows = sequence.shape[:-1]
    if batch_first and rows:
        T, rows = rows[0], [T]
    return T, tuple(rows), 2 if bidirectional else 1


def _sequence(like: Tensor, T: int, rows: tuple, width: int, batch_first: bool) -> Tensor:
    made = like.new_empty((T, *rows, width))
    return made.transpose(0, 1) if batch_first and rows else made


def _forward_fake(x, h0, c0, weights, layers, bidirectional, batch_first, wide_products, needs):
    check_one_device(x, h0, c0, *weights)
    T, rows, D = _sizes(x, bidirectional, batch_first)
    N, H, P = rows[0] if rows else 1, weights[1].shape[0] // 4, weights[1].shape[1]
    results = [
        _sequence(x, T, rows, D * P, batch_first),
        *(x.new_empty((layers * D, *rows, width)) for width in (P, H)),
    ]
    for k in range(_lowest(needs, len(weights) // layers), layers):
        if k:
            results.append(x.new_empty((T, N, D * P)))
        results.append(x.new_empty((T, N, D, H), dtype=accumulation_dtype(x.dtype)))
        results.append(x.new_empty((T, N, D, 4 * H)))
    results.append(_sequence(x, T, rows, D * P, batch_first))
    return results


def _backward_fake(
    doutput, dh_n, dc_n, x, h0, c0, matrices, output, tape, layers, bidirectional, batch_first,
    wide_products, needs,
):  # fmt: skip
    check_one_device(doutput, dh_n, dc_n, x, h0, c0, *matrices, output, *tape)
    T, rows, D = _sizes(output, bidirectional, batch_first)
    H, P, each = tape[-1].shape[3] // 4, output.shape[-1] // D, (len(needs) - 3) // (layers * D)
    results = [_sequence(output, T, rows, x.shape[-1], batch_first)] if needs[0] else []
    for width, need in ((P, needs[1]), (H, needs[2])):
        if need:
            results.append(output.new_empty((layers * D, *rows, width)))
    for j, need in enumerate(needs[3:]):
        k, i = divmod(j, D * each)
        inputs = D * P if k else None if x is None else x.shape[-1]
        shapes = [(4 * H, inputs), (4 * H, P), *[(4 * H,)] * 2 * (each >= 4), (P, H)]
        if need:
            results.append(output.new_empty(shapes[i % each]))
    return results


for _name, _fake in (
    ("lstm_training_forward", _forward_fake),
    ("lstm_training_backward", _backward_fake),
):
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=library)
