"""The passes of layers with checkpoints (ops.py): the forward goes through the sequence in chunks
of steps (chunks.py) and saves the states that enter each; the backward runs the forward of a chunk
again, with a tape, before it goes back through it.

Each chunk is a call of one direction's layers (chunk_layers.py). Gradients are sums over chunks.
The tape of a chunk, and every other tensor that it allocates, is freed before the next chunk: it
then takes the same memory, where a small tensor that lived on would fragment it.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...precision import accumulation_dtype
from ...weights import LayerNormWeights, LSTMWeights
from . import calls
from .calls import (
    CheckpointedBackward,
    CheckpointedForward,
    CheckpointedGrads,
    CheckpointedResults,
)
from .chunk_layers import PlainLayers, VariantLayers
from .chunks import Chunk, Chunks


@contextlib.contextmanager
def _alone(device: str):
    """Runs ops without autocast, and below autograd, whose handling of every argument takes as long
    as a short chunk."""
    with torch.autocast(device, enabled=False), torch._C._AutoDispatchBelowAutograd():
        yield


class Part(NamedTuple):
    """Layers that go through a sequence together, one direction of each: all layers of a stack of
    one direction, or one direction of a single layer."""

    direction: int
    rows: slice  # of these layers in the states (L*D, ...)
    layers: PlainLayers | VariantLayers
    chunks: Chunks


def _flat_rows(layers) -> list:
    """[layer][direction] flattened: one entry for each row of the states (L*D, ...)."""
    return [direction for layer in layers for direction in layer]


def _parts(call) -> list[Part]:
    """call: `CheckpointedForward` or `CheckpointedBackward`."""
    weights, norms = (_flat_rows(of_layers(call)) for of_layers in (calls.weights_of_layers, calls.norms_of_layers))
    is_variant, lengths = calls.is_variant(call), call.lengths
    if lengths is not None:
        lengths = lengths.clamp(0, call.x.shape[0])
    parts = []
    for d in range(call.directions):
        rows = slice(0, call.h0.shape[0]) if call.directions == 1 else slice(d, d + 1)
        if is_variant:
            h_mask = None if call.h_mask is None else call.h_mask[rows]
            layers = VariantLayers(call, weights[rows], norms[rows], h_mask, d)
        else:
            layers = PlainLayers(call, weights[rows])
        masks = lengths, call.reset_mask
        chunks = Chunks(call.x.shape[0], call.every, d == 1, *masks, reversing=not is_variant)
        parts.append(Part(d, rows, layers, chunks))
    return parts


def kept_states(call: CheckpointedForward) -> tuple[Tensor, Tensor]:
    """kept_h and kept_c, uninitialised."""
    chunks, wide = -(-call.x.shape[0] // call.every), accumulation_dtype(call.x.dtype)
    h0, c0 = call.h0, call.c0
    return h0.new_empty((chunks, *h0.shape)), c0.new_empty((chunks, *c0.shape), dtype=wide)


def forward(call: CheckpointedForward) -> CheckpointedResults:
    x, h0, c0, wide = call.x, call.h0, call.c0, accumulation_dtype(call.x.dtype)
    (T, N, _), D, H, P = x.shape, call.directions, c0.shape[2], h0.shape[2]
    # Between chunks c is in the accumulation dtype.
    output, h_n, c_n = x.new_empty(T, N, D * P), h0.clone(), c0.to(wide, copy=True)
    cells = x.new_empty((T, N, D, H) if call.save_cells else (0,), dtype=wide)
    kept_h, kept_c = kept_states(call)
    with _alone(x.device.type):
        for d, rows, layers, chunks in _parts(call):
            for begin in chunks.starts:
                chunk, at = chunks.chunk(begin), begin // call.every
                chunk.cut(h_n[rows], c_n[rows])
                kept_h[at, rows], kept_c[at, rows] = h_n[rows], c_n[rows]
                y = chunk.of(x)
                for k, r in enumerate(range(rows.start, rows.stop)):
                    states = kept_h[at, r : r + 1], kept_c[at, r : r + 1]
                    save_cells = call.save_cells and r == rows.stop - 1
                    results, tape = layers.forward(k, y, *states, chunk, False, save_cells)
                    y, h_n[r], c_n[r] = results.output, results.h_n[0], results.c_n[0]
                output[chunk.steps, :, d * P : (d + 1) * P] = chunk.ordered(y)
                if call.save_cells:
                    cells[chunk.steps, :, d] = chunk.ordered(results.cells[:, :, 0])
                del y, results, tape
    return CheckpointedResults(output, h_n, c_n.to(c0.dtype), cells, kept_h, kept_c)


class Back(NamedTuple):
    """The backward through chunks of the layers at `rows` of the states, from the last down to
    `lowest`. sums: for each layer the sums of its weights' and norms' gradients, None where not
    wanted."""

    layers: PlainLayers | VariantLayers
    rows: Sequence[int]
    lowest: int
    need_dx: bool
    sums: list[tuple[LSTMWeights, LayerNormWeights]]

    def through(self, chunk: Chunk, x, kept_h, kept_c, dy, dcells, dh, dc) -> Tensor | None:
        """The gradient of x. dh, dc: on entry gradients of the states that leave the chunk, on
        return, in place, those of the states that enter it."""
        inputs, tapes = [x], []
        for k, r in enumerate(self.rows):
            states = kept_h[r : r + 1], kept_c[r : r + 1]
            results, tape = self.layers.forward(k, inputs[k], *states, chunk, k >= self.lowest, False)
            inputs.append(results.output)
            tapes.append(tape)
        del results, tape
        for k in reversed(range(self.lowest, len(self.rows))):
            r = self.rows[k]
            grads = dy, dh[r : r + 1], dc[r : r + 1], dcells
            states = kept_h[r : r + 1], kept_c[r : r + 1]
            needs = tuple(type(of_kind)(*(total is not None for total in of_kind)) for of_kind in self.sums[k])
            inputs.pop()
            need_dx = k > self.lowest or (k == 0 and self.need_dx)
            found = self.layers.backward(k, grads, inputs[k], *states, tapes.pop(), chunk, need_dx, needs)
            dy, dh[r], dc[r], dcells = found.dx, found.dh[0], found.dc[0], None
            chunk.cut(dh[r], dc[r])
            for totals, of_kind in zip(self.sums[k], (found.weights, found.norms), strict=True):
                for total, grad in zip(totals, of_kind, strict=True):
                    if total is not None:
                        total += grad
            del grads, found
        return dy


def backward(call: CheckpointedBackward) -> CheckpointedGrads:
    x, h0, c0, P = call.x, call.h0, call.c0, call.h0.shape[2]
    wide = accumulation_dtype(x.dtype)
    dx = x.new_empty(x.shape if call.need_dx else (0,))
    # Between chunks the gradients of both states are in the accumulation dtype.
    dh0, dc0 = (
        torch.zeros_like(s, dtype=wide) if g is None else g.to(wide, copy=True, memory_format=torch.contiguous_format)
        for s, g in ((h0, call.dh_n), (c0, call.dc_n))
    )

    def zeros(tensors, needs):
        return [t.new_zeros(t.shape, dtype=wide) if need else None for t, need in zip(tensors, needs, strict=True)]

    of_weights, of_norms = (
        zeros(call.weights, call.need_dweights),
        zeros(call.norms, call.need_dnorms),
    )
    sums = list(
        zip(
            _flat_rows(calls.weights_of_layers(call, of_weights)),
            _flat_rows(calls.norms_of_layers(call, of_norms)),
            strict=True,
        )
    )
    with _alone(x.device.type):
        for d, part_rows, layers, chunks in _parts(call):
            part = sums[part_rows]
            wanted = [any(s is not None for kind in kinds for s in kind) for kinds in part]
            if not (call.need_dx or call.need_dstates or any(wanted)):
                continue
            # Layers below the first with a wanted gradient only run forward.
            lowest = 0 if call.need_dx or call.need_dstates else wanted.index(True)
            rows = range(part_rows.start, part_rows.stop)
            back = Back(layers, rows, lowest, call.need_dx, part)
            for begin in reversed(chunks.starts):
                chunk, at = chunks.chunk(begin), begin // call.every
                dy = of_cells = None
                if call.doutput is not None:
                    dy = chunk.ordered(call.doutput[chunk.steps, :, d * P : (d + 1) * P])
                if call.dcells is not None:
                    of_cells = chunk.ordered(call.dcells[chunk.steps, :, d : d + 1])
                states = call.kept_h[at], call.kept_c[at]
                dy = back.through(chunk, chunk.of(x), *states, dy, of_cells, dh0, dc0)
                if call.need_dx and d == 0:
                    dx[chunk.steps] = chunk.ordered(dy)
                elif call.need_dx:
                    dx[chunk.steps] += chunk.ordered(dy)
                del dy
    dweights, dnorms = (
        [x.new_empty((0,)) if total is None else total.to(x.dtype) for total in totals]
        for totals in (of_weights, of_norms)
    )
    return CheckpointedGrads(dx, dh0.to(h0.dtype), dc0.to(c0.dtype), dweights, dnorms)
