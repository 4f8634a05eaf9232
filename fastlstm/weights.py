"""The weights of a layer, and what a call has beyond the plain LSTM."""

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Weight matrices may be stored in the first dtype if all other tensors are of the second.
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


_of_directions = [operator.attrgetter(*(name + end for name in LSTMWeights._fields)) for end in ("", "_reverse")]


def weights_of(call, reverse: bool) -> LSTMWeights:
    """The weights of a direction among an op's arguments, or the corresponding entries of a tuple
    that has the same fields: weight_ih, ..., and for the reverse direction weight_ih_reverse, ...
    """
    return LSTMWeights._make(_of_directions[reverse](call))


def present(biases: bool, projected: bool) -> LSTMWeights:
    """Which weights each layer and direction has: a bool for each."""
    return LSTMWeights(True, True, biases, biases, projected)


def flat(layers) -> list[Tensor]:
    """The flat list of a stack's weights for an op, from layers[layer][direction], `LSTMWeights` or
    `LayerNormWeights`, without those that are None."""
    return [w for layer in layers for direction in layer for w in direction if w is not None]


def nested(weights: Sequence, there, directions: int) -> list[list]:
    """Undoes `flat`: [layer][direction] -> the weights, or the entries of a list of the same order.

    Args:
        there: a tuple of bools as `present` gives; entries that are not there become None.
    """
    rest, each = iter(weights), type(there)
    of_directions = [
        each(*(next(rest) if is_there else None for is_there in there)) for _ in range(len(weights) // sum(there))
    ]
    return [of_directions[k : k + directions] for k in range(0, len(of_directions), directions)]


def by_layer(*kinds: Sequence[Tensor]) -> list[LSTMWeights]:
    """The weights of each layer of a stack of one direction. kinds: a list for each field of
    `LSTMWeights` with an entry for each layer, or empty."""
    return [LSTMWeights(*(of_kind[k] if of_kind else None for of_kind in kinds)) for k in range(max(map(len, kinds)))]


def widened(layers, dtype: torch.dtype) -> list[list]:
    """`LSTMWeights`, layer by layer, with the matrices in `dtype`."""

    def widen(w):
        hr = None if w.weight_hr is None else w.weight_hr.to(dtype)
        return w._replace(weight_ih=w.weight_ih.to(dtype), weight_hh=w.weight_hh.to(dtype), weight_hr=hr)

    return [[widen(w) for w in layer] for layer in layers]


class LayerNormWeights(NamedTuple):
    """Layer normalisation's gains and bias of one layer and direction (`fastlstm.reference.variant`
    has the equations): gains of W_ih x (4H,), W_hh h (4H,) and the cell (H,), and the cell's bias
    (H,) or None. The gates' biases are those of the LSTM."""

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
        """Whether the plain recurrence cannot be used."""
        dropout = self.training and self.recurrent_dropout
        return bool(self.norms is not None or any(self.zoneout) or dropout)


class Rest(NamedTuple):
    """What a call of a stack has beside inputs, states, weights and a variant; see
    `fastlstm.stack.run.run_layers`. wide_products: whether products are in the accumulation dtype.
    """

    lengths: Tensor | None
    reset_mask: Tensor | None
    return_cells: bool
    between_layers: Callable[[Tensor], Tensor] | None
    wide_products: bool
