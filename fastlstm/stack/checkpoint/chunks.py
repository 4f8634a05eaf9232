"""A sequence cut in chunks of K steps, as one direction goes through it.

The plain ops get chunks that run forward: those of a reverse direction are reversed in time, each
row by itself where it ends within the chunk. The variants' ops take the reverse direction by
itself, since zoneout's masks depend on step and direction: its chunks stay as they are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...reference import lstm as reference


class Chunk(NamedTuple):
    """Some steps of a sequence, in the order in which the ops take them.

    reversed: whether the last step comes first. order: (steps, N), which step is at each place,
    where rows end at different ones; its own inverse. lengths and reset_mask: of the steps in
    this order.
    entering: (N,) bool, where a reset cuts what enters the chunk and reset_mask does not say so, or
    None.
    """

    steps: slice
    reversed: bool
    order: Tensor | None
    lengths: Tensor | None
    reset_mask: Tensor | None
    entering: Tensor | None

    def ordered(self, part: Tensor | None) -> Tensor | None:
        """The chunk's steps (steps, N, ...) from time's order to the ops', or back."""
        if part is None or not self.reversed:
            return part
        if self.order is None:
            return part.flip(0)
        index = self.order.view(*self.order.shape, *[1] * (part.dim() - 2)).expand(part.shape)
        return part.gather(0, index)

    def of(self, sequence: Tensor | None) -> Tensor | None:
        """The chunk's part of a sequence, in the ops' order."""
        return None if sequence is None else self.ordered(sequence[self.steps])

    def cut(self, *states: Tensor) -> None:
        """Zeros in states (..., N, X), or in their gradients, where a reset cuts what enters."""
        if self.entering is not None:
            for state in states:
                state.masked_fill_(self.entering[:, None], 0)

    @property
    def masks(self):
        return self.lengths, self.reset_mask


class Way:
    """One direction's way through a sequence of T steps, in chunks of `every` steps, in its own
    order; reversing: whether a reverse direction's chunks are reversed in time."""

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
