"""The arguments and results of the ops of a stack of layers of one direction (ops.py).

T steps, N rows, I inputs, L layers, H units, P outputs: x (T, N, I), h0 (L, N, P), c0 (L, N, H);
of each layer weight_ih (4H, I or P) and weight_hh (4H, P), and in lists that may be empty bias_ih
and bias_hh (4H,), weight_hr (P, H); lengths (N,) int64; reset_mask (T, N) bool; dropout_masks, for
each layer but the last or none, (T, N, P) bool, True where a number is kept; dropout, the share
that is dropped.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...fields import joined
from ...reference.backward import ResultGrads
from ...weights import LSTMWeights, by_layer


def dropout_mask(call, k: int) -> Tensor | None:
    """Of what layer k takes in."""
    return call.dropout_masks[k - 1] if k and call.dropout_masks else None


def apply_dropout(y: Tensor, mask: Tensor | None, share: float) -> Tensor:
    """y after dropout of a share; also the gradient of that. Bit by bit what torch's own dropout
    gives: on a GPU that scales in float32, on the CPU it multiplies with numbers of y's dtype."""
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
        return by_layer(
            self.weights_ih, self.weights_hh, self.biases_ih, self.biases_hh, self.weights_hr
        )


class StackResults(NamedTuple):
    """output (T, N, P) and cells (T, N, 1, H) of the last layer; of each layer below it hidden, its
    output before dropout, and its cells; of each layer gates (T, N, 1, 4H)."""

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
    """As `define_op` asks for it."""


@joined({"family": str}, ResultGrads, _Kept)
class StackBackward:
    """What the gradients are made of, and which are wanted: lowest, the first layer that has one to
    give, below which nothing is computed; and whether x's, and each layer's weights'."""

    lowest: int
    need_dx: bool
    need_dweights: list[bool]

    def layers(self) -> list[LSTMWeights]:
        return by_layer(self.weights_ih, self.weights_hh, [], [], self.weights_hr)

    def input_of(self, k: int) -> Tensor:
        """What layer k takes in, before dropout."""
        return self.hidden[k - 1] if k else self.x

    def output_of(self, k: int) -> Tensor:
        return self.output if k == len(self.hidden) else self.hidden[k]

    def cells_of(self, k: int) -> Tensor:
        return self.cells if k == len(self.lower_cells) else self.lower_cells[k]

    def wants_dx_of(self, k: int) -> bool:
        return self.need_dx if k == 0 else k > self.lowest


class StackGrads(NamedTuple):
    """Without elements where not wanted; dbiases: that of each of a layer's biases."""

    dx: Tensor
    dh0: Tensor
    dc0: Tensor
    dweights_ih: list[Tensor]
    dweights_hh: list[Tensor]
    dbiases: list[Tensor]
    dweights_hr: list[Tensor]
