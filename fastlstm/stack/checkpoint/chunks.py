"""A sequence in chunks of K steps, in the order of one direction.

The plain ops run a single direction forward only, so the chunks of a reverse direction are reversed
in time, each row over the steps it has in the chunk. The variants' ops run a reverse direction
alone, since zoneout's masks depend on step and direction, and get its chunks unchanged.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...reference import lstm as reference


class Chunk(NamedTuple):
    """Consecutive steps of a sequence, in the order in which the ops process them.

    reversed: whether that is from the last step to the first. order: (steps, N), the step at each
    place, if rows have different lengths; it is its own inverse. lengths, reset_mask: in that
    order. entering: (N,) bool, the rows whose states are reset before they enter the chunk, where
    reset_mask does not contain that boundary; or None.
    """

    steps: slice
    reversed: bool
    order: Tensor | None
    lengths: Tensor | None
    reset_mask: Tensor | None
    entering: Tensor | None

    def ordered(self, part: Tensor | None) -> Tensor | None:
        """The chunk's steps (steps, N, ...) from order of time to that of the ops, or back."""
        if part is None or not self.reversed:
            return part
        if self.order is None:
            return part.flip(0)
        index = self.order.view(*self.order.shape, *[1] * (part.dim() - 2)).expand(part.shape)
        return part.gather(0, index)

    def of(self, sequence: Tensor | None) -> Tensor | None:
        """The chunk's part of a sequence, in the order of the ops."""
        return None if sequence is None else self.ordered(sequence[self.steps])

    def cut(self, *states: Tensor) -> None:
        """Zeroes the rows of states (..., N, X), or of their gradients, that are reset."""
        if self.entering is not None:
            for state in states:
                state.masked_fill_(self.entering[:, None], 0)


class Chunks:
    """The chunks of `every` steps of T, in the order of one direction. reversing: whether those of
    a reverse direction are reversed in time."""

    def __init__(self, T: int, every: int, reverse: bool, lengths, reset_mask, reversing: bool):
        self.T, self.every = T, every
        self.reverse, self.reversing = reverse, reversing and reverse
        self.lengths, self.reset_mask = lengths, reset_mask
        self.starts = list(range(0, T, every))[:: -1 if reverse else 1]
        self.cuts = reference.entering_cuts(T, reset_mask, lengths, reverse)

    def chunk(self, begin: int) -> Chunk:
        end = min(begin + self.every, self.T)
        steps, entering = slice(begin, end), None
        lengths = None if self.lengths is None else (self.lengths - begin).clamp(0, end - begin)
        if not self.reversing:
            if self.reverse and self.cuts is not None:
                entering = self.cuts[end - 1]
            reset_mask = None if self.reset_mask is None else self.reset_mask[steps]
            return Chunk(steps, False, None, lengths, reset_mask, entering)
        order = None
        if lengths is not None:
            at = torch.arange(end - begin, device=lengths.device)[:, None]
            order = torch.where(at < lengths, lengths - 1 - at, at)
        chunk = Chunk(steps, True, order, lengths, None, None)
        return chunk._replace(reset_mask=chunk.of(self.cuts))
