"""A sequence cut in pieces of K steps, as one direction goes through it.

The ops take pieces of one direction that run forward. A reverse direction's piece is turned round,
each row for itself where it ends inside, so that a forward one runs on it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import reference


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
