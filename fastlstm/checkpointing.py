"""Layers whose backward keeps no tape: states are kept every K steps, and the backward runs the
forward of K steps again, with a tape, before it goes back through them.

What is kept of L layers of one direction is x, which is the caller's, and (h, c) of each layer at
every K-th step; of two directions it is the same, a layer at a time. A training step holds one tape
of K steps at a time, and its gradients are sums over the pieces. With 16-bit tensors, c is rounded
to them between pieces, in the forward as in the backward, so that both compute the same numbers;
elsewhere they are those of a call for all steps.

The pieces are calls of the layer ops (layer_ops.py) with one direction. A reverse direction's piece
is turned round, each row for itself where it ends inside, so that a forward one runs on it.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import layer_ops, reference, transforms  # noqa: F401  (layer_ops registers its ops)
from .ops import library

FORWARD = (
    "checkpointed_forward(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? lengths, "
    "Tensor? reset_mask, str family, int directions, int biases, bool projected, "
    "bool wide_products, bool save_cells, int every) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor kept_h, Tensor kept_c)"
)
BACKWARD = (
    "checkpointed_backward(Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor x, "
    "Tensor h0, Tensor c0, Tensor[] weights, Tensor? lengths, Tensor? reset_mask, Tensor kept_h, "
    "Tensor kept_c, str family, int directions, int biases, bool projected, bool wide_products, "
    "int every, bool need_dx, bool need_dstates, bool[] need_dweights) "
    "-> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights)"
)
DEFAULT = 64  # steps from one kept state to the next
SWITCHES = 7  # of the forward, after its tensors
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


def _by_layer(weights, biases: int, projected: bool) -> list[tuple[Tensor | None, ...]]:
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

    def through(self, piece: "Piece", x, kept_h, kept_c, dy, dcells, dh, dc) -> Tensor:
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


class Way:
    """One direction's way through a sequence, in pieces of `every` steps, in its own order."""

    def __init__(self, T: int, every: int, reverse: bool, lengths, reset_mask) -> None:
        self.T, self.reverse, self.lengths = T, reverse, lengths
        self.starts = list(range(0, T, every))[:: -1 if reverse else 1]
        self.every = every
        self.cuts = reference.entering_cuts(T, reset_mask, lengths, reverse)

    def piece(self, begin: int) -> "Piece":
        steps = min(self.every, self.T - begin)
        lengths = None if self.lengths is None else (self.lengths - begin).clamp(0, steps)
        turn = None
        if self.reverse and lengths is not None:
            at = torch.arange(steps, device=lengths.device)[:, None]
            turn = torch.where(at < lengths, lengths - 1 - at, at)
        piece = Piece(slice(begin, begin + steps), self.reverse, turn, lengths, None)
        if self.cuts is None:
            return piece
        return piece._replace(reset_mask=piece.of(self.cuts))


class Piece(NamedTuple):
    """Some steps of a sequence, in the order of a direction.

    turn: (steps, N), the step that stands in each place, where rows end at different ones; its own
    inverse. lengths and reset_mask: of the turned piece.
    """

    steps: slice
    reverse: bool
    turn: Tensor | None
    lengths: Tensor | None
    reset_mask: Tensor | None

    def turned(self, part: Tensor | None) -> Tensor | None:
        if part is None or not self.reverse:
            return part
        if self.turn is None:
            return part.flip(0)
        index = self.turn.view(*self.turn.shape, *[1] * (part.dim() - 2)).expand(part.shape)
        return part.gather(0, index)

    def of(self, sequence: Tensor | None) -> Tensor | None:
        return None if sequence is None else self.turned(sequence[self.steps])

    @property
    def masks(self):
        return self.lengths, self.reset_mask


@contextlib.contextmanager
def _alone(device: str):
    """Ops run as they are called: not cast again by autocast, and without their autograd, whose
    look at every argument takes as long as a short piece."""
    with torch.autocast(device, enabled=False), torch._C._AutoDispatchBelowAutograd():
        yield


def _forward(
    x, h0, c0, weights, lengths, reset_mask, family, directions, biases, projected, wide_products,
    save_cells, every,
):  # fmt: skip
    T, N, _ = x.shape
    D, P, H = directions, h0.shape[2], c0.shape[2]
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    stacked = _by_layer(weights, biases, projected)
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


def _backward(
    doutput, dh_n, dc_n, dcells, x, h0, c0, weights, lengths, reset_mask, kept_h, kept_c, family,
    directions, biases, projected, wide_products, every, need_dx, need_dstates, need_dweights,
):  # fmt: skip
    T, N, I = x.shape
    D, P = directions, h0.shape[2]
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    stacked = _by_layer(weights, biases, projected)
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
        for layer, needs in zip(stacked, _by_layer(need_dweights, biases, projected), strict=True)
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


def _forward_fake(
    x, h0, c0, weights, lengths, reset_mask, family, directions, biases, projected, wide_products,
    save_cells, every,
):  # fmt: skip
    (T, N, _), count = x.shape, (x.shape[0] + every - 1) // every
    cells = (T, N, directions, c0.shape[2]) if save_cells else (0,)
    return (
        x.new_empty((T, N, directions * h0.shape[2])),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        x.new_empty(cells, dtype=reference.accumulation_dtype(x.dtype)),
        h0.new_empty((count, *h0.shape)),
        c0.new_empty((count, *c0.shape)),
    )


def _backward_fake(
    doutput, dh_n, dc_n, dcells, x, h0, c0, weights, lengths, reset_mask, kept_h, kept_c, family,
    directions, biases, projected, wide_products, every, need_dx, need_dstates, need_dweights,
):  # fmt: skip
    return (
        x.new_empty(x.shape if need_dx else (0,)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        [
            w.new_empty(w.shape if needed else (0,))
            for w, needed in zip(weights, need_dweights, strict=True)
        ],
    )


def _setup(ctx, inputs, output):
    x, h0, c0, weights, lengths, reset_mask, *switches = inputs
    ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(x, h0, c0, lengths, reset_mask, *output[4:], *weights)
    ctx.switches = switches
    ctx.set_materialize_grads(False)


def _derivative(ctx, doutput, dh_n, dc_n, dcells, *_):
    x, h0, c0, lengths, reset_mask, kept_h, kept_c, *weights = ctx.saved_tensors
    *settings, save_cells, every = ctx.switches
    need_dx, need_dh0, need_dc0, need_dweights, *_ = ctx.needs_input_grad
    rest = (None,) * (2 + SWITCHES)
    if torch.is_grad_enabled():
        inputs = [t.view_as(t) if t.requires_grad else t for t in (x, h0, c0, *weights)]
        results = _plain(*inputs[:3], inputs[3:], lengths, reset_mask, *settings, save_cells)
        found = _grads(results, (doutput, dh_n, dc_n, dcells), inputs)
        return (*found[:3], found[3:], *rest)
    dx, dh0, dc0, dweights = torch.ops.fastlstm.checkpointed_backward(
        doutput, dh_n, dc_n, dcells, x, h0, c0, weights, lengths, reset_mask, kept_h, kept_c,
        *settings, every, need_dx, need_dh0 or need_dc0, need_dweights,
    )  # fmt: skip
    dweights = [g if need else None for g, need in zip(dweights, need_dweights, strict=True)]
    return dx if need_dx else None, dh0, dc0, dweights, *rest


def _plain(
    x, h0, c0, weights, lengths, reset_mask, family, directions, biases, projected, wide_products,
    save_cells,
):  # fmt: skip
    """The same forward with the tape of all steps kept: what a second derivative goes through."""
    stacked, states = _by_layer(weights, biases, projected), []
    op = getattr(torch.ops.fastlstm, f"{family}_layer_forward").default
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        for k in range(0, len(stacked), directions):
            reverse = stacked[k + 1] if directions == 2 else (None,) * len(NAMES)
            part = slice(k, k + directions)
            switches = wide_products, True, save_cells
            x, h, c, cells, _ = op(
                x, h0[part], c0[part], *stacked[k], *reverse, lengths, reset_mask, *switches
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


def check_every(every: int | bool | None) -> int | None:
    """`every` as a number of steps, or None for no checkpoints; True is `DEFAULT`.

    Raises:
        ValueError: it is none of None, a bool and a positive int.
    """
    if isinstance(every, bool):
        return DEFAULT if every else None
    if every is not None and (not isinstance(every, int) or every < 1):
        raise ValueError(
            f"checkpoint_every: got {every!r}, expected a positive int, the steps from one kept "
            f"state to the next, True for {DEFAULT}, or None"
        )
    return every


def serves(every: int | None, x: Tensor, h0: Tensor, c0: Tensor, layers) -> bool:
    """Whether `every` is asked for, and there is a longer tape to do without. Transforms of
    torch.func and forward-mode derivatives have tapes of their own."""
    if every is None or x.shape[0] <= every or not torch.is_grad_enabled() or transforms.active():
        return False
    weights = (w for layer in layers for direction in layer for w in direction)
    return any(a is not None and a.requires_grad for a in (x, h0, c0, *weights))


def run_layers(
    family: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    layers,
    every: int,
    *,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    return_cells: bool,
    between_layers,
    wide_products: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `functional.run_layers`, with states kept every `every` steps in the place of tapes.

    Layers of one direction without dropout run together, piece by piece, and nothing is kept
    between them; others keep their outputs.
    """
    D = len(layers[0])
    first = layers[0][0]
    biases = (first.bias_ih is not None) + 2 * (first.bias_hh is not None)
    together = len(layers) if D == 1 and between_layers is None else 1
    states = []
    for k in range(0, len(layers), together):
        last = k + together == len(layers)
        group = [w for layer in layers[k : k + together] for d in layer for w in d]
        part = slice(k * D, (k + together) * D)
        x, h, c, cells, _, _ = torch.ops.fastlstm.checkpointed_forward(
            x, h0[part], c0[part], [w for w in group if w is not None], lengths, reset_mask,
            family, D, biases, first.weight_hr is not None, wide_products, return_cells and last,
            every,
        )  # fmt: skip
        states.append((h, c))
        if between_layers is not None and not last:
            x = between_layers(x)
    h, c = states[0] if len(states) == 1 else (torch.cat(s) for s in zip(*states, strict=True))
    return x, h, c, cells.flatten(2).to(x.dtype) if return_cells else None


for _schema, _name, _impl, _fake in (
    (FORWARD, "checkpointed_forward", _forward, _forward_fake),
    (BACKWARD, "checkpointed_backward", _backward, _backward_fake),
):
    library.define(_schema)
    library.impl(_name, _impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=library)
torch.library.register_autograd(
    "fastlstm::checkpointed_forward", _derivative, setup_context=_setup, lib=library
)
