"""The weights of a layer and what a call has beyond the plain LSTM, as every
part of the package hands them on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Weight matrices may be stored so beside other tensors that are so.
STORED, BESIDE = torch.bfloat16, torch.float32


class LSTMWeights(NamedTuple):
    """The weights of one layer and direction, gate order i, f, g, o.

    weight_ih (4H, I), weight_hh (4H, P), biases (4H,) or None, weight_hr (P, H) or None; P = H
    without weight_hr.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None


def widened(layers, dtype: torch.dtype) -> list[list]:
    """`LSTMWeights`, layer by layer, with the matrices in `dtype`."""

    def widen(w):
        hr = None if w.weight_hr is None else w.weight_hr.to(dtype)
        return w._replace(
            weight_ih=w.weight_ih.to(dtype), weight_hh=w.weight_hh.to(dtype), weight_hr=hr
        )

    return [[widen(w) for w in layer] for layer in layers]


def flat(layers) -> list[Tensor] | None:
    """`LSTMWeights`, layer by layer, as the list that ops of a whole stack take: of each layer and
    direction weight_ih, weight_hh, both biases or neither, weight_hr or not. None where there is
    one bias without the other."""
    first = layers[0][0]
    if (first.bias_ih is None) != (first.bias_hh is None):
        return None
    return [w for layer in layers for weights in layer for w in weights if w is not None]


class LayerNormWeights(NamedTuple):
    """Gains and bias of a layer-normalised layer and direction (`fastlstm.reference.variant`
    has the equations): of W_ih x (4H,), of W_hh h (4H,), of the cell (H,), and the cell's bias (H,)
    or None. The gates' biases are the LSTM's own."""

    weight_ih: Tensor
    weight_hh: Tensor
    weight_c: Tensor
    bias_c: Tensor | None = None


class Variant(NamedTuple):
    """What a call has beyond the plain LSTM; see `fastlstm.functional.lstm`.

    norms: laid out as the layers' weights, or None. zoneout: probabilities of h and c.
    """

    norms: Sequence[Sequence[LayerNormWeights]] | None = None
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)
    training: bool = False

    def changes_recurrence(self) -> bool:
        """Whether the plain recurrence does not do."""
        dropout = self.training and self.recurrent_dropout
        return bool(self.norms is not None or any(self.zoneout) or dropout)
