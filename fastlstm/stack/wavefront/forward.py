"""What the ops of a stack (ops.py) compute: all steps of L layers of one direction, as a
wavefront where that gains (plan.py), on lanes (lanes.py).

What a layer does with a chunk of steps is what ops/layer.py does with all of them. From chunk to
chunk a layer carries h, and c and the gradients of both in the accumulation dtype, so that the
numbers are those of an uncut sequence; only a matrix product of other sizes may sum in another
order. Weight gradients are one large product a layer, after its last chunk.

Sizes: T steps, N rows, I inputs, L layers, H units, P outputs.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import layer as layer_ops
from ...precision import accumulation_dtype
from . import lanes

MOST_LANES = 8  # as many queues has a GPU by default


class Weights(NamedTuple):
    """Of each layer: weight_ih (4H, I or P), weight_hh (4H, P), and, or without entries, biases
    (4H,) and weight_hr (P, H)."""

    ih: list[Tensor]
    hh: list[Tensor]
    bias_ih: list[Tensor]
    bias_hh: list[Tensor]
    hr: list[Tensor]


class Tape(NamedTuple):
    """What the backward needs of the forward. output (T, N, P) and cells (T, N, 1, H) of the last
    layer; of each layer below it hidden, its output before dropout, and its cells; of each layer
    gates (T, N, 1, 4H)."""

    output: Tensor
    cells: Tensor
    hidden: list[Tensor]
    lower_cells: list[Tensor]
    gates: list[Tensor]

    def outputs_of(self, k: int) -> Tensor:
        return self.output if k == len(self.hidden) else self.hidden[k]

    def cells_of(self, k: int) -> Tensor:
        return self.cells if k == len(self.lower_cells) else self.lower_cells[k]


class Dropout(NamedTuple):
    """Between layers: for each layer but the last a mask (T, N, P), True where a number is kept, or
    no masks; share: of the numbers that are dropped, where all kept ones are scaled up for it."""

    masks: list[Tensor]
    share: float

    def mask(self, k: int) -> Tensor | None:
        return self.masks[k] if self.masks else None

    def apply(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """y after dropout; also the gradient of that. Bit by bit what torch's own dropout gives:
        on a GPU that scales in float32, on the CPU it multiplies with numbers of y's dtype."""
        if mask is None:
            return y
        kept = 1 - self.share or 1.0
        if y.is_cuda:
            return torch.native_dropout_backward(y, mask, 1 / kept)
        return y * mask.to(y.dtype).div(kept)


class Masks:
    """lengths (N,) and reset_mask (T, N), each or None, as each chunk of steps sees them."""

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
    """Call `layer.chunk(k)` for all layers and all k in order, each after the same k of the layer
    before it in the list; on lanes if there is more than one chunk."""
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
    """A layer on its way forward. What `chunk` makes is the lane's own, but for what it writes into
    the arrays of the whole sequence."""

    def __init__(self, recurrence, masks, k, below, drop, weights, states, results, saves):
        self.recurrence, self.masks, self.below = recurrence, masks, below
        self.apply_dropout, self.mask = drop
        self.weights, self.states, self.results = weights, states, results
        self.save_tape, self.save_cells = saves
        self.k, self.whole = k, len(masks.spans) == 1
        if not self.whole:
            (h0, c0), T = states, masks.spans[-1][1]
            wide = accumulation_dtype(h0.dtype)
            N, H = c0.shape[1:]
            keep = self.save_tape or self.save_cells
            self.output = h0.new_empty((T, N, h0.shape[2]))
            self.cells = h0.new_empty((T, N, 1, H) if keep else (0,), dtype=wide)
            self.gates = h0.new_empty((T, N, 1, 4 * H) if self.save_tape else (0,))

    def chunk(self, k: int) -> None:
        if k == 0:
            self._start()
        start, end = self.masks.spans[k]
        x = self.below if isinstance(self.below, Tensor) else self.below.output
        if not self.whole:
            x = x[start:end]
        elif self.k and not self.save_tape:
            self.below.output = None  # nobody else wants it
        x = self.apply_dropout(x, None if self.mask is None else self.mask[start:end])
        gates_x = layer_ops.input_product(x, *self.into_gates).unsqueeze(2)
        output, self.h, self.c, cells, gates = self.recurrence(
            gates_x, self.h, self.c, self.weight_hh, self.weight_hr, *self.masks.of(k),
            self.save_tape, self.save_cells,
        )  # fmt: skip
        if self.whole:
            self.output, self.cells, self.gates = output, cells, gates
        else:
            self.output[start:end].copy_(output)
            for kept, new in ((self.cells, cells), (self.gates, gates)):
                if kept.numel():
                    kept[start:end].copy_(new)
        if end == self.masks.spans[-1][1]:
            for result, state in zip(self.results, (self.h, self.c), strict=True):
                result.copy_(state[0])

    def _start(self) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = self.weights
        dtype = weight_ih.dtype
        self.into_gates = layer_ops.input_weights(
            (weight_ih, None), ((bias_ih, None), (bias_hh, None)), dtype, dtype
        )
        self.weight_hh = weight_hh.unsqueeze(0)
        self.weight_hr = None if weight_hr is None else weight_hr.unsqueeze(0)
        self.h, self.c = self.states
        if not self.whole:
            self.c = self.c.to(accumulation_dtype(dtype))


def of_layer(lists, k: int) -> list[Tensor | None]:
    return [entries[k] if entries else None for entries in lists]


def forward(
    recurrence, x, h0, c0, weights: Weights, lengths, reset_mask, dropout: Dropout, save_tape,
    save_cells, chunk: int,
):  # fmt: skip
    """output, h_n (L, N, P), c_n (L, N, H), cells, and of the tape hidden, lower_cells, gates.

    Args:
        recurrence: the forward op of a family. x (T, N, I). h0 (L, N, P). c0 (L, N, H). chunk:
        steps of a chunk, T for layers one after the other.
    """
    L = len(weights.ih)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    masks = Masks(x.shape[0], chunk, lengths, reset_mask)
    layers = []
    for k in range(L):
        layers.append(
            _ForwardLayer(
                recurrence,
                masks,
                k,
                layers[-1] if k else x,
                (dropout.apply, dropout.mask(k - 1) if k else None),
                of_layer(weights, k),
                (h0[k : k + 1], c0[k : k + 1]),
                (h_n[k], c_n[k]),
                (save_tape, save_cells and k == L - 1),
            )
        )
    sweep(x.device, layers, len(masks.spans))
    *lower, last = layers
    if not save_tape:
        return last.output, h_n, c_n, last.cells, [], [], []
    return (
        last.output,
        h_n,
        c_n,
        last.cells,
        [layer.output for layer in lower],
        [layer.cells for layer in lower],
        [layer.gates for layer in layers],
    )
