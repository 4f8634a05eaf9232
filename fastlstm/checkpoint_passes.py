"""What the ops of checkpoint_ops.py compute: the forward of layers through a sequence in pieces
(pieces.py), with the states kept that enter each, and the backward, which runs the forward of a
piece again, with a tape, before it goes back through it.

The pieces are calls of the layer ops (layer_ops.py) with one direction. A training step holds one
tape of K steps at a time, and its gradients are sums over the pieces.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import layer_ops, reference  # noqa: F401  (layer_ops registers its ops)
from .pieces import Piece, Way

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class Stack(NamedTuple):
    """The weights of layers that run one after the other, and how they run.

    weights: for each layer (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr), with None for what
    is not there.
    """

    weights: list[tuple[Tensor | None, ...]]
    family: str
    wide_products: bool

    def forward(self, k: int, x, h, c, masks, save_tape: bool, save_cells: bool):
        op = getattr(torch.ops.fastlstm, f"{self.family}_layer_forward").default
        none = (None,) * len(NAMES)
        switches = self.wide_products, save_tape, save_cells
        return op(x, h, c, *self.weights[k], *none, *masks, *switches)

    def backward(self, k: int, grads, x, h, c, tape, masks, need_dx: bool, need_dweights: bool):
        op = getattr(torch.ops.fastlstm, f"{self.family}_layer_backward").default
        weight_ih, weight_hh, _, _, weight_hr = self.weights[k]
        matrices = weight_ih, weight_hh, weight_hr, None, None, None
        needs = need_dx, need_dweights
        return op(*grads, x, h, c, *matrices, *tape, *masks, self.wide_products, *needs)


def by_layer(weights, biases: int, projected: bool) -> list[tuple[Tensor | None, ...]]:
    """The flat list of weights, those of a layer and direction together. biases: bit 0 says
    whether there is bias_ih, bit 1 bias_hh."""
    here = [True, True, bool(biases & 1), bool(biases & 2), projected]
    rest = iter(weights)
    return [
        tuple(next(rest) if there else None for there in here)
        for _ in range(len(weights) // sum(here))
    ]


class Back(NamedTuple):
    """The way back through pieces: the layers of a stack at `rows` of the states, from the last
    down to `lowest`. wanted: whether a layer's weights have gradients, sums: where these go."""

    stack: Stack
    rows: Sequence[int]
    lowest: int
    need_dx: bool
    wanted: list[bool]
    sums: list[list[Tensor | None]]

    def through(self, piece: Piece, x, kept_h, kept_c, dy, dcells, dh, dc) -> Tensor:
        """The gradient of x. Those of the states go from dh and dc, of what leaves the piece, to
        the same, of what enters it."""
        inputs, tapes = [x], []
        for k, r in enumerate(self.rows):
            states = kept_h[r : r + 1], kept_c[r : r + 1]
            output, _, _, *tape = self.stack.forward(
                k, inputs[k], *states, piece.masks, k >= self.lowest, False
            )
            inputs.append(output)
            tapes.append(tape)
        for k in reversed(range(self.lowest, len(self.rows))):
            r = self.rows[k]
            grads = dy, dh[r : r + 1], dc[r : r + 1], dcells
            states = kept_h[r : r + 1], kept_c[r : r + 1]
            tape = inputs.pop(), *tapes.pop()
            dy, dh_in, dc_in, dweight_ih, dweight_hh, dbias, dweight_hr = self.stack.backward(
                k, grads, inputs[k], *states, tape, piece.masks,
                k > self.lowest or (k == 0 and self.need_dx), self.wanted[k],
            )  # fmt: skip
            dh[r], dc[r], dcells = dh_in[0], dc_in[0], None
            found = dweight_ih, dweight_hh, dbias, dbias, dweight_hr
            for total, grad in zip(self.sums[k], found, strict=True):
                if total is not None:
                    total += grad[0]
        return dy


@contextlib.contextmanager
def _alone(device: str):
    """Ops run as they are called: not cast again by autocast, and without their autograd, whose
    look at every argument takes as long as a short piece."""
    with torch.autocast(device, enabled=False), torch._C._AutoDispatchBelowAutograd():
        yield


def forward(
    x, h0, c0, weights, lengths, reset_mask, family, directions, biases, projected, wide_products,
    save_cells, every,
):  # fmt: skip
    T, N, _ = x.shape
    D, P, H = directions, h0.shape[2], c0.shape[2]
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    stacked = by_layer(weights, biases, projected)
    wide = reference.accumulation_dtype(x.dtype)
    output, h_n, c_n = x.new_empty(T, N, D * P), torch.empty_like(h0), torch.empty_like(c0)
    cells = x.new_empty((T, N, D, H) if save_cells else (0,), dtype=wide)
    count = -(-T // every)
    kept_h, kept_c = h0.new_empty(count, *h0.shape), c0.new_empty(count, *c0.shape)
    with _alone(x.device.type):
        for d in range(D):
            stack = Stack(stacked if D == 1 else stacked[d : d + 1], family, wide_products)
            rows = range(h0.shape[0]) if D == 1 else [d]
            h, c = [h0[r] for r in rows], [c0[r] for r in rows]
            way = Way(T, every, d == 1, lengths, reset_mask)
            for begin in way.starts:
                piece = way.piece(begin)
                part = piece.of(x)
                for k, r in enumerate(rows):
                    kept_h[begin // every, r], kept_c[begin // every, r] = h[k], c[k]
                    last = save_cells and k == len(rows) - 1
                    part, h_k, c_k, cells_k, _ = stack.forward(
                        k, part, h[k][None], c[k][None], piece.masks, False, last
                    )
                    h[k], c[k] = h_k[0], c_k[0]
                output[piece.steps, :, d * P : (d + 1) * P] = piece.turned(part)
                if save_cells:
                    cells[piece.steps, :, d] = piece.turned(cells_k[:, :, 0])
            for k, r in enumerate(rows):
                h_n[r], c_n[r] = h[k], c[k]
    return output, h_n, c_n, cells, kept_h, kept_c


def backward(
    doutput, dh_n, dc_n, dcells, x, h0, c0, weights, lengths, reset_mask, kept_h, kept_c, family,
    directions, biases, projected, wide_products, every, need_dx, need_dstates, need_dweights,
):  # fmt: skip
    T, N, I = x.shape
    D, P = directions, h0.shape[2]
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    stacked = by_layer(weights, biases, projected)
    wide = reference.accumulation_dtype(x.dtype)
    dx = x.new_empty((T, N, I) if need_dx else (0,))
    dh0, dc0 = torch.zeros_like(h0), torch.zeros_like(c0)
    if dh_n is not None:
        dh0.copy_(dh_n)
    if dc_n is not None:
        dc0.copy_(dc_n)
    sums = [
        [
            None if w is None or not needed else w.new_zeros(w.shape, dtype=wide)
            for w, needed in zip(layer, needs, strict=True)
        ]
        for layer, needs in zip(stacked, by_layer(need_dweights, biases, projected), strict=True)
    ]
    with _alone(x.device.type):
        for d in range(D):
            part_of = slice(None) if D == 1 else slice(d, d + 1)
            stack = Stack(stacked[part_of], family, wide_products)
            rows = range(h0.shape[0])[part_of]
            wanted = [any(s is not None for s in layer) for layer in sums[part_of]]
            if not (need_dx or need_dstates or any(wanted)):
                continue
            # The layers below the first of which anything is asked are only run forward.
            lowest = 0 if need_dx or need_dstates else wanted.index(True)
            way = Way(T, every, d == 1, lengths, reset_mask)
            back = Back(stack, rows, lowest, need_dx, wanted, sums[part_of])
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
    flat = [
        x.new_empty((0,)) if total is None else total.to(x.dtype)
        for layer, weights_of in zip(sums, stacked, strict=True)
        for total, w in zip(layer, weights_of, strict=True)
        if w is not None
    ]
    return dx, dh0, dc0, flat
