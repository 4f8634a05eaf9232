"""A jagged NestedTensor as the padded batch that the recurrence takes, and back.

A jagged tensor (N, j, I) has the steps of its rows one after the other in `values` (S, I), row n
from offsets[n] on; the recurrence takes (T, N, I) and the rows' lengths. T is the longest row,
which torch stores with a jagged tensor that was made of rows; for one made of values and offsets,
torch computes it once, which waits for the GPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Jagged(NamedTuple):
    """The places of the S rows of values in the padded layout; pads and packs as `packing.Packing`.

    index: (S,) int64, positions in the flattened (T*N,), and T*N for values that are in no row.
    lengths: (N,) int64 on the values' device.
    """

    T: int
    N: int
    index: Tensor
    lengths: Tensor

    def pad(self, values: Tensor) -> Tensor:
        """(S, X) -> (T, N, X), zeros at the steps that do not exist."""
        padded = values.new_zeros(self.T * self.N + 1, *values.shape[1:])
        padded = padded.index_copy(0, self.index, values)
        return padded[:-1].view(self.T, self.N, *values.shape[1:])

    def pack(self, padded: Tensor) -> Tensor:
        """(T, N, X) -> (S, X), zeros for values that are in no row."""
        rows = padded.flatten(0, 1)
        return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]).index_select(0, self.index)


def is_nested(value) -> bool:
    """Whether this is a NestedTensor of either layout."""
    return isinstance(value, Tensor) and value.is_nested


def jagged_of(input: Tensor) -> Jagged:
    """The places of the values of a jagged (N, j, I).

    Raises:
        ValueError: the layout is another, or another dimension than the second is jagged.
    """
    if input.layout != torch.jagged:
        raise ValueError(
            f"input: got a NestedTensor of layout {input.layout}, expected torch.jagged; make it "
            "with torch.nested.nested_tensor(rows, layout=torch.jagged)"
        )
    if input.dim() != 3 or input._ragged_idx != 1:
        raise ValueError(
            f"input: got a jagged NestedTensor of shape {tuple(input.shape)}, expected (N, j, I), "
            "jagged in its second dimension"
        )
    offsets, lengths = input.offsets(), input.lengths()
    if lengths is None:
        lengths = offsets.diff()
    N, T = len(lengths), input._max_seqlen
    at = torch.arange(input.values().shape[0], device=offsets.device)
    row = (torch.searchsorted(offsets, at, right=True) - 1).clamp(0, max(N - 1, 0))
    step = at - offsets[row]
    exists = step < lengths[row] if N else step < 0
    index = torch.where(exists, step * N + row, T * N)
    return Jagged(T, N, index, lengths)


def mask_values(reset_mask, input: Tensor) -> Tensor:
    """The values of a jagged reset_mask (N, j) with the rows of `input`.

    Raises:
        ValueError: it is not bool, or has other rows (was not made with `input.offsets()`).
    """
    same = reset_mask.dim() == 2 and reset_mask.layout == torch.jagged
    if not same or reset_mask.shape[:2] != input.shape[:2]:
        raise ValueError(
            f"reset_mask: got a NestedTensor of shape {tuple(reset_mask.shape)}, expected (N, j) = "
            f"{tuple(input.shape[:2])}, jagged as the input: make it with "
            "torch.nested.nested_tensor_from_jagged(values, input.offsets())"
        )
    if reset_mask.dtype != torch.bool:
        raise ValueError(f"reset_mask: got dtype {reset_mask.dtype}, expected torch.bool")
    return reset_mask.values()


def like(input: Tensor, values: Tensor) -> Tensor:
    """A jagged tensor of `values` with the rows, and the symbolic shape, of `input`."""
    make = torch.nested.nested_tensor_from_jagged if torch.compiler.is_compiling() else _Made.apply
    return make(values, input.offsets(), input.lengths())


# torch's own derivative of nested_tensor_from_jagged cannot itself be differentiated (torch 2.13).
class _Made(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets, lengths):
        ctx.rows = offsets, lengths
        return torch.nested.nested_tensor_from_jagged(values.detach(), offsets, lengths)

    @staticmethod
    def backward(ctx, grad):
        return _Values.apply(grad, *ctx.rows), None, None


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx, jagged, offsets, lengths):
        ctx.rows = offsets, lengths
        return jagged.values().clone()

    @staticmethod
    def backward(ctx, grad):
        return _Made.apply(grad, *ctx.rows), None, None
