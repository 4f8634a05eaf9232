"""The arguments and results of the ops of a stack of layers of one direction (ops.py).

T steps, N rows, I inputs, L layers, H units, P outputs: x (T, N, I), h0 (L, N, P), c0 (L, N, H);
lists with one entry a layer: weights_ih (4H, I or P) and weights_hh (4H, P), and, or empty,
biases_ih and biases_hh (4H,), weights_hr (P, H); lengths (N,) int64; reset_mask (T, N) bool;
dropout_masks, for each layer but the last, or empty: (T, N, P) bool, True where an element is kept;
dropout, the probability that an element is dropped. family is the ops' prefix (ops/recurrence.py):
exported programs have the argument under that name.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...fields import joined
from ...reference.backward import ResultGrads
from ...weights import LSTMWeights, by_layer


def dropout_mask(call, k: int) -> Tensor | None:
    """The mask of layer k's input, or None."""
    return call.dropout_masks[k - 1] if k and call.dropout_masks else None


def apply_dropout(y: Tensor, mask: Tensor | None, share: float) -> Tensor:
    """Dropout of y; also the gradient of dropout. Bit for bit torch's own dropout, which on a GPU
    scales in float32 and on the CPU multiplies by numbers of y's dtype. share: the probability."""
    if mask is None:
        return y
    kept = 1 - share or 1.0
    if y.is_cuda:
        return torch.native_dropout_backward(y, mask, 1 / kept)
    return y * mask.to(y.dtype).div(kept)


class StackForward(NamedTuple):
    family: str
    x: Tensor
    h0: Tensor
    c0: Tensor
    weights_ih: list[Tensor]
    weights_hh: list[Tensor]
    biases_ih: list[Tensor]
    biases_hh: list[Tensor]
    weights_hr: list[Tensor]
    lengths: Tensor | None
    reset_mask: Tensor | None
    dropout_masks: list[Tensor]
    dropout: float
    save_tape: bool
    save_cells: bool

    def layers(self) -> list[LSTMWeights]:
        return by_layer(self.weights_ih, self.weights_hh, self.biases_ih, self.biases_hh, self.weights_hr)


class StackResults(NamedTuple):
    """output (T, N, P) and cells (T, N, 1, H) of the last layer; hidden, the outputs before
    dropout, and lower_cells of the layers below it; gates (T, N, 1, 4H) of all layers."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor
    hidden: list[Tensor]
    lower_cells: list[Tensor]
    gates: list[Tensor]


class _Kept(NamedTuple):
    """What the backward needs of the forward's arguments and results."""

    x: Tensor
    h0: Tensor
    c0: Tensor
    weights_ih: list[Tensor]
    weights_hh: list[Tensor]
    weights_hr: list[Tensor]
    output: Tensor
    cells: Tensor
    hidden: list[Tensor]
    lower_cells: list[Tensor]
    gates: list[Tensor]
    lengths: Tensor | None
    reset_mask: Tensor | None
    dropout_masks: list[Tensor]
    dropout: float


@joined({"family": str}, _Kept)
class StackTape:
    """The forward op's tape (`define_op`)."""


@joined({"family": str}, ResultGrads, _Kept)
class StackBackward:
    """lowest: the first layer with a wanted gradient, below which nothing is computed. need_dx,
    need_dweights: whether the gradients of x, and of each layer's weights, are wanted."""

    lowest: int
    need_dx: bool
    need_dweights: list[bool]

    def layers(self) -> list[LSTMWeights]:
        return by_layer(self.weights_ih, self.weights_hh, [], [], self.weights_hr)

    def input_of(self, k: int) -> Tensor:
        """The input of layer k before dropout."""
        return self.hidden[k - 1] if k else self.x

    def output_of(self, k: int) -> Tensor:
        return self.output if k == len(self.hidden) else self.hidden[k]

    def cells_of(self, k: int) -> Tensor:
        return self.cells if k == len(self.lower_cells) else self.lower_cells[k]

    def wants_dx_of(self, k: int) -> bool:
        return self.need_dx if k == 0 else k > self.lowest


class StackGrads(NamedTuple):
    """Gradients that are not wanted have no elements. dbiases: of bias_ih, and of bias_hh."""

    dx: Tensor
    dh0: Tensor
    dc0: Tensor
    dweights_ih: list[Tensor]
    dweights_hh: list[Tensor]
    dbiases: list[Tensor]
    dweights_hr: list[Tensor]
