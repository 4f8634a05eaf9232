"""A PackedSequence as the padded batch that the recurrence takes, and back.

A packed sequence has only the valid steps of the rows, step by step, longest row first; the
recurrence takes (T, N, I) and the rows' lengths. Packing and padding are one indexed copy each,
differentiable to any order.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class Packing(NamedTuple):
    """The places of a packed batch's S rows of data in its padded layout.

    index: (S,) int64, positions in the flattened (T*N,); None if every row has T steps, S = T*N.
    lengths: (N,) int64 on the CPU, descending; None if index is.
    """

    T: int
    N: int
    index: Tensor | None
    lengths: Tensor | None

    def pad(self, data: Tensor) -> Tensor:
        """(S, X) -> (T, N, X), zeros at the steps that do not exist."""
        if self.index is not None:
            padded = data.new_zeros(self.T * self.N, data.shape[1])
            data = padded.index_copy(0, self.index, data)
        return data.reshape(self.T, self.N, data.shape[1])

    def pack(self, padded: Tensor) -> Tensor:
        """(T, N, X) -> (S, X)."""
        rows = padded.flatten(0, 1)
        return rows if self.index is None else rows.index_select(0, self.index)


def packing_of(packed: PackedSequence) -> Packing:
    """The packing that `packed.batch_sizes` describes.

    Raises:
        ValueError: batch_sizes are not descending, or do not add up to the rows of data (as in a
        PackedSequence made by hand).
    """
    data, batch_sizes = packed.data, packed.batch_sizes
    T, N, S = len(batch_sizes), int(batch_sizes[0]), data.shape[0]
    exists = torch.arange(N) < batch_sizes.unsqueeze(1)  # [T, N]
    index = exists.flatten().nonzero().flatten()
    if len(index) != S or bool((batch_sizes[1:] > batch_sizes[:-1]).any()):
        raise ValueError(
            f"input: got a PackedSequence of {S} rows with batch_sizes {batch_sizes.tolist()}, "
            "expected them to descend and to add up to the rows; make it with "
            "torch.nn.utils.rnn.pack_padded_sequence"
        )
    if S == T * N:
        return Packing(T, N, None, None)
    return Packing(T, N, index.to(data.device), exists.sum(0))
