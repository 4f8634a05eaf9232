"""What the ops of checkpointed layers (ops.py) compute: the forward through a sequence in pieces
(pieces.py), with the states kept that enter each, and the backward, which runs the forward of a
piece again, with a tape, before it goes back through it.

The pieces are calls of one direction's layers (piece_layers.py). A training step holds one tape
of K steps at a time, and its gradients are sums over the pieces. Nothing but these outlives its
piece: what is freed in one is what the next takes, where small tensors kept in between would leave
the allocator holes.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...precision import accumulation_dtype
from .piece_layers import PlainLayers, Settings, VariantLayers, norms_by_layer
from .pieces import Piece, Way


@contextlib.contextmanager
def _alone(device: str):
    """Ops run as they are called: not cast again by autocast, and without their autograd, whose
    look at every argument takes as long as a short piece."""
    with torch.autocast(device, enabled=False), torch._C._AutoDispatchBelowAutograd():
        yield


class Call(NamedTuple):
    """The tensors of an op's call, and how its layers run; see `ops.FORWARD`."""

    x: Tensor
    h0: Tensor
    c0: Tensor
    weights: list[Tensor]
    norms: list[Tensor]
    h_mask: Tensor | None
    seed: Tensor | None
    lengths: Tensor | None
    reset_mask: Tensor | None
    settings: Settings

    @classmethod
    def of(cls, *args) -> "Call":
        *tensors, lengths, reset_mask = args[:9]
        if lengths is not None:
            lengths = lengths.clamp(0, args[0].shape[0])
        return cls(*tensors, lengths, reset_mask, Settings(*args[9:]))

    @property
    def is_variant(self) -> bool:
        s = self.settings
        return bool(self.norms or self.h_mask is not None or s.zoneout_h or s.zoneout_c)

    @property
    def states(self) -> torch.dtype:
        """Of c and of the gradients of both states, from piece to piece: the accumulation dtype."""
        return accumulation_dtype(self.x.dtype)

    def parts(self) -> list[tuple[int, slice]]:
        """(direction, its layers among the rows of the states): of one direction all layers, of two
        there is one layer."""
        if self.settings.directions == 1:
            return [(0, slice(0, self.h0.shape[0]))]
        return [(d, slice(d, d + 1)) for d in range(2)]

    def layers(self, d: int, part: slice) -> PlainLayers | VariantLayers:
        weights = self.settings.by_layer(self.weights)[part]
        if not self.is_variant:
            return PlainLayers(self.settings, weights)
        norms = norms_by_layer(self.norms, self.h0.shape[0])[part]
        h_mask = None if self.h_mask is None else self.h_mask[part]
        return VariantLayers(self.settings, weights, norms, h_mask, self.seed, d)

    def way(self, d: int, every: int) -> Way:
        masks = self.lengths, self.reset_mask
        return Way(self.x.shape[0], every, d == 1, *masks, turning=not self.is_variant)


def forward(*args):
    *args, save_cells, every = args
    call = Call.of(*args)
    x, h0, c0 = call[:3]
    (T, N, _), D, H, P = x.shape, call.settings.directions, c0.shape[2], h0.shape[2]
    output, h_n, c_n = x.new_empty(T, N, D * P), h0.clone(), c0.to(call.states, copy=True)
    wide = accumulation_dtype(x.dtype)
    cells = x.new_empty((T, N, D, H) if save_cells else (0,), dtype=wide)
    count = -(-T // every)
    kept_h, kept_c = h0.new_empty(count, *h0.shape), c_n.new_empty(count, *c0.shape)
    with _alone(x.device.type):
        for d, part in call.parts():
            layers, way, top = call.layers(d, part), call.way(d, every), part.stop - 1
            for begin in way.starts:
                piece, at = way.piece(begin), begin // every
                piece.cut(h_n[part], c_n[part])
                kept_h[at, part], kept_c[at, part] = h_n[part], c_n[part]
                y = piece.of(x)
                for k, r in enumerate(range(part.start, part.stop)):
                    states = kept_h[at, r : r + 1], kept_c[at, r : r + 1]
                    y, h, c, of_cells, _ = layers.forward(
                        k, y, *states, piece, False, save_cells and r == top
                    )
                    h_n[r], c_n[r] = h[0], c[0]
                    del h, c
                output[piece.steps, :, d * P : (d + 1) * P] = piece.turned(y)
                if save_cells:
                    cells[piece.steps, :, d] = piece.turned(of_cells[:, :, 0])
                del y, of_cells, _
    return output, h_n, c_n.to(c0.dtype), cells, kept_h, kept_c


class Back(NamedTuple):
    """The way back through pieces: the layers at `rows` of the states, from the last down to
    `lowest`. sums: where the gradients of a layer's weights and norms go, None for those that have
    none."""

    layers: PlainLayers | VariantLayers
    rows: Sequence[int]
    lowest: int
    need_dx: bool
    sums: list[list[Tensor | None]]

    def through(self, piece: Piece, x, kept_h, kept_c, dy, dcells, dh, dc) -> Tensor | None:
        """The gradient of x. Those of the states go from dh and dc, of what leaves the piece, to
        the same, of what enters it."""
        inputs, tapes = [x], []
        for k, r in enumerate(self.rows):
            states = kept_h[r : r + 1], kept_c[r : r + 1]
            output, _, _, _, tape = self.layers.forward(
                k, inputs[k], *states, piece, k >= self.lowest, False
            )
            inputs.append(output)
            tapes.append(tape)
        del output, tape, _
        for k in reversed(range(self.lowest, len(self.rows))):
            r = self.rows[k]
            grads = dy, dh[r : r + 1], dc[r : r + 1], dcells
            states = kept_h[r : r + 1], kept_c[r : r + 1]
            inputs.pop()
            dy, dh_in, dc_in, found = self.layers.backward(
                k, grads, inputs[k], *states, tapes.pop(), piece,
                k > self.lowest or (k == 0 and self.need_dx),
                [total is not None for total in self.sums[k]],
            )  # fmt: skip
            dh[r], dc[r], dcells = dh_in[0], dc_in[0], None
            piece.cut(dh[r], dc[r])
            if found is not None:
                for total, grad in zip(self.sums[k], found, strict=True):
                    if total is not None:
                        total += grad
            del grads, dh_in, dc_in, found
        return dy


def backward(doutput, dh_n, dc_n, dcells, *args):
    kept_h, kept_c, every, need_dx, need_dstates, need_dweights, need_dnorms = args[-7:]
    call = Call.of(*args[:-7])
    x, h0, c0, weights, norms = call[:5]
    P, by_layer = h0.shape[2], call.settings.by_layer
    wide = accumulation_dtype(x.dtype)
    dx = x.new_empty(x.shape if need_dx else (0,))
    dh0, dc0 = (
        torch.zeros_like(s, dtype=call.states)
        if g is None
        else g.to(call.states, copy=True, memory_format=torch.contiguous_format)
        for s, g in ((h0, dh_n), (c0, dc_n))
    )
    of_weights, of_norms = (
        [w.new_zeros(w.shape, dtype=wide) if need else None for w, need in zip(*p, strict=True)]
        for p in ((weights, need_dweights), (norms, need_dnorms))
    )
    sums = [
        [*w, *n]
        for w, n in zip(by_layer(of_weights), norms_by_layer(of_norms, h0.shape[0]), strict=True)
    ]
    with _alone(x.device.type):
        for d, part in call.parts():
            wanted = [any(s is not None for s in layer) for layer in sums[part]]
            if not (need_dx or need_dstates or any(wanted)):
                continue
            # The layers below the first of which anything is asked are only run forward.
            lowest = 0 if need_dx or need_dstates else wanted.index(True)
            rows = range(part.start, part.stop)
            back = Back(call.layers(d, part), rows, lowest, need_dx, sums[part])
            way = call.way(d, every)
            for begin in reversed(way.starts):
                piece, at = way.piece(begin), begin // every
                dy = of_cells = None
                if doutput is not None:
                    dy = piece.turned(doutput[piece.steps, :, d * P : (d + 1) * P])
                if dcells is not None:
                    of_cells = piece.turned(dcells[piece.steps, :, d : d + 1])
                dy = back.through(
                    piece, piece.of(x), kept_h[at], kept_c[at], dy, of_cells, dh0, dc0
                )
                if need_dx and d == 0:
                    dx[piece.steps] = piece.turned(dy)
                elif need_dx:
                    dx[piece.steps] += piece.turned(dy)
                del dy
    nothing = x.new_empty
    dweights, dnorms = (
        [nothing((0,)) if total is None else total.to(x.dtype) for total in totals]
        for totals in (of_weights, of_norms)
    )
    return dx, dh0.to(h0.dtype), dc0.to(c0.dtype), dweights, dnorms
