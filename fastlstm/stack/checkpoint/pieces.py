"""A sequence cut in pieces of K steps, as one direction goes through it.

The plain ops take pieces of one direction that run forward: a reverse direction's piece is turned
round, each row for itself where it ends inside. The variants' ops run the reverse direction alone,
for zoneout's masks are of steps and directions: its pieces stay as they are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...reference import lstm as reference


class Piece(NamedTuple):
    """Some steps of a sequence, in the order in which the ops take them.

    turned_round: whether the last step stands first. turn: (steps, N), the step that stands in each
    place, where rows end at different ones; its own inverse. lengths and reset_mask: of the steps
    in their places. entering: (N,) bool, where a reset cuts what enters the piece and reset_mask
    does not tell, or None.
    """

    steps: slice
    turned_round: bool
    turn: Tensor | None
    lengths: Tensor | None
    reset_mask: Tensor | None
    entering: Tensor | None

    def turned(self, part: Tensor | None) -> Tensor | None:
        if part is None or not self.turned_round:
            return part
        if self.turn is None:
            return part.flip(0)
        index = self.turn.view(*self.turn.shape, *[1] * (part.dim() - 2)).expand(part.shape)
        return part.gather(0, index)

    def of(self, sequence: Tensor | None) -> Tensor | None:
        return None if sequence is None else self.turned(sequence[self.steps])

    def cut(self, *states: Tensor) -> None:
        """Zeros in states (..., N, X), or in their gradients, where a reset cuts what enters."""
        if self.entering is not None:
            for state in states:
                state.masked_fill_(self.entering[:, None], 0)

    @property
    def masks(self):
        return self.lengths, self.reset_mask


class Way:
    """One direction's way through a sequence of T steps, in pieces of `every` steps, in its own
    order; turning: whether a reverse direction's pieces are turned round."""

    def __init__(self, T: int, every: int, reverse: bool, lengths, reset_mask, turning: bool):
        self.T, self.every = T, every
        self.reverse, self.turning = reverse, turning and reverse
        self.lengths, self.reset_mask = lengths, reset_mask
        self.starts = list(range(0, T, every))[:: -1 if reverse else 1]
        self.cuts = reference.entering_cuts(T, reset_mask, lengths, reverse)

    def piece(self, begin: int) -> Piece:
        end = min(begin + self.every, self.T)
        steps, entering = slice(begin, end), None
        lengths = None if self.lengths is None else (self.lengths - begin).clamp(0, end - begin)
        if not self.turning:
            if self.reverse and self.cuts is not None:
                entering = self.cuts[end - 1]
            reset_mask = None if self.reset_mask is None else self.reset_mask[steps]
            return Piece(steps, False, None, lengths, reset_mask, entering)
        turn = None
        if lengths is not None:
            at = torch.arange(end - begin, device=lengths.device)[:, None]
            turn = torch.where(at < lengths, lengths - 1 - at, at)
        piece = Piece(steps, True, turn, lengths, None, None)
        return piece._replace(reset_mask=piece.of(self.cuts))
