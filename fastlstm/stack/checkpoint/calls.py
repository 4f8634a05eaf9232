"""The arguments and results of the ops of layers with checkpoints (ops.py), and the layers in
them.

Of L layers and D directions: weights and norms, those of a layer and direction together, without
what is not there (`weights.flat`); biases, a mask of bits, 1 with bias_ih and 2 with bias_hh;
norms and h_mask (L*D, N, P) as the variants' (stack/variant.py), empty and None for plain layers;
seed (1,) or None; layer: the number of the first among the stack's; every: the steps from one kept
state to the next.
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
    """kept_h, kept_c: (chunks, L*D, N, ...), the states that enter each chunk of steps."""

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
    """Without elements where not wanted."""

    dx: Tensor
    dh0: Tensor
    dc0: Tensor
    dweights: list[Tensor]
    dnorms: list[Tensor]


# Below, `call` is a CheckpointedForward, -Tape or -Backward.


def biases_of(weights: LSTMWeights) -> int:
    """The ops' argument `biases` of layers that have the weights that `weights` has."""
    return (weights.bias_ih is not None) + 2 * (weights.bias_hh is not None)


def is_variant(call) -> bool:
    return bool(call.norms or call.h_mask is not None or call.zoneout_h or call.zoneout_c)


def weights_of_layers(call, values=None) -> list[list[LSTMWeights]]:
    """Of each layer and direction the weights, or what stands in the places of the flat list."""
    has_bias_ih, has_bias_hh = bool(call.biases & 1), bool(call.biases & 2)
    there = LSTMWeights(True, True, has_bias_ih, has_bias_hh, call.projected)
    return nested(call.weights if values is None else values, there, call.directions)


def norms_of_layers(call, values=None) -> list[list[LayerNormWeights]]:
    """The norms so; without normalisation all None."""
    layers = call.h0.shape[0]
    values = call.norms if values is None else values
    if not call.norms:
        none = LayerNormWeights(*(None,) * len(LayerNormWeights._fields))
        return [[none] * call.directions] * (layers // call.directions)
    has_bias_c = len(values) == layers * len(LayerNormWeights._fields)
    return nested(values, LayerNormWeights(True, True, True, has_bias_c), call.directions)
