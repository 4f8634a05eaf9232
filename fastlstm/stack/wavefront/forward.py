"""The forward of a stack, `fastlstm::stack_forward`: all steps of L layers of one direction, as a
wavefront where that is faster (plan.py), on lanes (lanes.py).

A layer computes a chunk of steps as ops/layer.py computes all of them. Between chunks it carries h,
and c and the gradients of both in the accumulation dtype, so the numbers are those of an undivided
sequence, except that a matrix product of another size may sum in another order. The gradients of
weights are one large product for each layer, after its last chunk.

Sizes: T steps, N rows, I inputs, L layers, H units, P outputs.
"""

import functools

import torch
from torch import Tensor

from ...ops import layer as layer_ops
from ...ops import recurrence
from ...precision import accumulation_dtype
from ...weights import LSTMWeights
from . import lanes
from .calls import StackForward, StackResults, apply_dropout, dropout_mask

MOST_LANES = 8  # the default number of a GPU's hardware queues (CUDA_DEVICE_MAX_CONNECTIONS)


class Masks:
    """lengths (N,) or None and reset_mask (T, N) or None, for each chunk of steps."""

    def __init__(self, T: int, chunk: int, lengths: Tensor | None, reset_mask: Tensor | None):
        self.spans = [(t, min(t + chunk, T)) for t in range(0, T, max(chunk, 1))] or [(0, 0)]
        self.whole = lengths, reset_mask
        self.lengths, self.reset_mask = lengths, reset_mask
        if lengths is not None and len(self.spans) > 1:
            starts = torch.arange(0, T, chunk, device=lengths.device)
            self.lengths = lengths - starts.unsqueeze(1)  # the recurrence clamps

    def of(self, k: int) -> tuple[Tensor | None, Tensor | None]:
        lengths, reset_mask = self.lengths, self.reset_mask
        if len(self.spans) > 1:
            lengths = None if lengths is None else lengths[k]
            start, end = self.spans[k]
            reset_mask = None if reset_mask is None else reset_mask[start:end]
        return lengths, reset_mask


def sweep(device: torch.device, layers: list, chunks: int) -> None:
    """Calls `layer.chunk(k)` for all layers and k: each layer's chunks in order, and each chunk
    after the same chunk of the layer before it in the list; on lanes if there is more than one
    chunk."""
    count = 1 if chunks == 1 else min(len(layers), MOST_LANES)
    with lanes.open_lanes(device, count) as queues:
        done = {}
        for wave in range(len(layers) + chunks - 1):
            for i in range(max(0, wave - chunks + 1), min(len(layers), wave + 1)):
                lane, k = i % count, wave - i
                if i > 0:
                    queues.wait(lane, done[i - 1, k])
                queues.run(lane, functools.partial(layers[i].chunk, k))
                if i < len(layers) - 1:
                    done[i, k] = queues.mark(lane)


class _ForwardLayer:
    """The forward of a layer. Tensors that `chunk` allocates are used on its lane only; what it
    writes to arrays of the whole sequence is for other lanes too."""

    def __init__(self, run, call: StackForward, masks: Masks, k: int, weights: LSTMWeights, below, h_n, c_n) -> None:
        """run: the recurrence's forward. below: the layer below, None for the first. h_n (N, P),
        c_n (N, H): the last states, to write."""
        self.run, self.call, self.masks = run, call, masks
        self.k, self.weights, self.below = k, weights, below
        self.h_n, self.c_n = h_n, c_n
        self.whole = len(masks.spans) == 1
        self.save_tape = call.save_tape
        self.save_cells = call.save_cells and k == len(call.weights_ih) - 1
        self.h, self.c = call.h0[k : k + 1], call.c0[k : k + 1]
        if not self.whole:
            T, (_, N, H), P = masks.spans[-1][1], call.c0.shape, call.h0.shape[2]
            wide = accumulation_dtype(call.h0.dtype)
            keep = self.save_tape or self.save_cells
            self.output = call.h0.new_empty((T, N, P))
            self.cells = call.h0.new_empty((T, N, 1, H) if keep else (0,), dtype=wide)
            self.gates = call.h0.new_empty((T, N, 1, 4 * H) if self.save_tape else (0,))

    def chunk(self, k: int) -> None:
        if k == 0:
            self._start()
        start, end = self.masks.spans[k]
        x = self.call.x if self.below is None else self.below.output
        if not self.whole:
            x = x[start:end]
        elif self.below is not None and not self.save_tape:
            self.below.output = None  # not needed any more: free it early
        mask = dropout_mask(self.call, self.k)
        x = apply_dropout(x, None if mask is None else mask[start:end], self.call.dropout)
        results = recurrence.Results(
            *self.run(
                layer_ops.input_product(x, *self.into_gates).unsqueeze(2), self.h, self.c,
                self.weight_hh, self.weight_hr, *self.masks.of(k), self.save_tape, self.save_cells,
            )
        )  # fmt: skip
        self.h, self.c = results.h_n, results.c_n
        if self.whole:
            self.output, self.cells, self.gates = results.output, results.cells, results.gates
        else:
            self.output[start:end].copy_(results.output)
            for kept, new in ((self.cells, results.cells), (self.gates, results.gates)):
                if kept.numel():
                    kept[start:end].copy_(new)
        if k == len(self.masks.spans) - 1:
            self.h_n.copy_(self.h[0])
            self.c_n.copy_(self.c[0])

    def _start(self) -> None:
        w = self.weights
        dtype = w.weight_ih.dtype
        self.into_gates = layer_ops.input_weights(
            (w.weight_ih, None), ((w.bias_ih, None), (w.bias_hh, None)), dtype, dtype
        )
        self.weight_hh = w.weight_hh.unsqueeze(0)
        self.weight_hr = None if w.weight_hr is None else w.weight_hr.unsqueeze(0)
        if not self.whole:
            self.c = self.c.to(accumulation_dtype(dtype))


def forward(run, call: StackForward, chunk: int) -> StackResults:
    """All layers' forward. run: the recurrence's forward op. chunk: the steps of a chunk; T runs
    the layers one after the other."""
    h_n, c_n = torch.empty_like(call.h0), torch.empty_like(call.c0)
    masks = Masks(call.x.shape[0], chunk, call.lengths, call.reset_mask)
    layers = []
    for k, weights in enumerate(call.layers()):
        layers.append(_ForwardLayer(run, call, masks, k, weights, layers[-1] if k else None, h_n[k], c_n[k]))
    sweep(call.x.device, layers, len(masks.spans))
    *lower, last = layers
    kept = [], [], []
    if call.save_tape:
        kept = (
            [layer.output for layer in lower],
            [layer.cells for layer in lower],
            [layer.gates for layer in layers],
        )
    return StackResults(last.output, h_n, c_n, last.cells, *kept)
