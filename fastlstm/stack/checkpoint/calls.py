"""The arguments and results of the ops of layers with checkpoints (ops.py).

For L layers and D directions: weights and norms are flat lists, layer by layer and direction by
direction, without those that are None (`weights.flat`); biases is a bit mask, 1 for bias_ih and 2
for bias_hh; norms and h_mask (L*D, N, P) are the variants' (stack/variant.py), empty and None for
plain layers; seed (1,) or None; layer is the first layer's index in its stack; every is the number
of steps between saved states. family is the ops' prefix (ops/recurrence.py): exported programs have
the argument under that name.
"""

from typing import NamedTuple

from torch import Tensor

from ...fields import joined
from ...reference.backward import ResultGrads
from ...weights import LayerNormWeights, LSTMWeights, nested


class _Layers(NamedTuple):
    x: Tensor
    h0: Tensor
    c0: Tensor
    weights: list[Tensor]
    norms: list[Tensor]
    h_mask: Tensor | None
    seed: Tensor | None
    lengths: Tensor | None
    reset_mask: Tensor | None
    family: str
    directions: int
    biases: int
    projected: bool
    zoneout_h: float
    zoneout_c: float
    layer: int
    wide_products: bool


@joined(_Layers)
class CheckpointedForward:
    save_cells: bool
    every: int


class CheckpointedResults(NamedTuple):
    """kept_h, kept_c: (chunks, L*D, N, P or H), the states that enter each chunk of steps."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor
    kept_h: Tensor
    kept_c: Tensor


@joined(_Layers)
class CheckpointedTape:
    save_cells: bool
    kept_h: Tensor
    kept_c: Tensor
    every: int


@joined(ResultGrads, _Layers)
class CheckpointedBackward:
    kept_h: Tensor
    kept_c: Tensor
    every: int
    need_dx: bool
    need_dstates: bool
    need_dweights: list[bool]
    need_dnorms: list[bool]


class CheckpointedGrads(NamedTuple):
    """Gradients that are not wanted have no elements."""

    dx: Tensor
    dh0: Tensor
    dc0: Tensor
    dweights: list[Tensor]
    dnorms: list[Tensor]


# Below, `call` is a CheckpointedForward, -Tape or -Backward.


def biases_of(weights: LSTMWeights) -> int:
    """The argument `biases`, from the weights of any layer and direction."""
    return (weights.bias_ih is not None) + 2 * (weights.bias_hh is not None)


def is_variant(call) -> bool:
    return bool(call.norms or call.h_mask is not None or call.zoneout_h or call.zoneout_c)


def weights_of_layers(call, values=None) -> list[list[LSTMWeights]]:
    """[layer][direction] -> the weights, or the corresponding entries of another flat list."""
    has_bias_ih, has_bias_hh = bool(call.biases & 1), bool(call.biases & 2)
    there = LSTMWeights(True, True, has_bias_ih, has_bias_hh, call.projected)
    return nested(call.weights if values is None else values, there, call.directions)


def norms_of_layers(call, values=None) -> list[list[LayerNormWeights]]:
    """As `weights_of_layers` for the norms; all None without normalisation."""
    layers = call.h0.shape[0]
    values = call.norms if values is None else values
    if not call.norms:
        none = LayerNormWeights(*(None,) * len(LayerNormWeights._fields))
        return [[none] * call.directions] * (layers // call.directions)
    has_bias_c = len(values) == layers * len(LayerNormWeights._fields)
    return nested(values, LayerNormWeights(True, True, True, has_bias_c), call.directions)
