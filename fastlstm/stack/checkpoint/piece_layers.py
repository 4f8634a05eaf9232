"""The layers that run through a piece (pieces.py), one direction of each: by the ops of whole
layers (ops/layer.py), or by the variants' recurrence (ops/variant.py) with what is around it.

Both give the same: `forward` the output (T, N, P), h and c (1, N, ...), cells (T, N, 1, H) and a
tape, of which only `backward` knows what it has; `backward` the gradients of x, of the states
(1, N, ...), and of the weights and norms, in the order of NAMES and NORMS, None for what is not
there; needs says in that order which of them are wanted.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import layer as layer_ops
from ...ops import variant  # noqa: F401  (registers its ops)
from ...precision import accumulation_dtype
from ...reference import lstm as reference
from ...reference.variant import EPSILON
from .pieces import Piece

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
NORMS = ("weight_ih", "weight_hh", "weight_c", "bias_c")
NO_NORMS = (None,) * len(NORMS)


class Settings(NamedTuple):
    """How the layers of a call run. layer: the number of the first among the stack's."""

    family: str
    directions: int
    biases: int  # bit 0: there is bias_ih, bit 1: bias_hh
    projected: bool
    zoneout_h: float
    zoneout_c: float
    layer: int
    wide_products: bool

    def op(self, name: str):
        return getattr(torch.ops.fastlstm, f"{self.family}_{name}").default

    def by_layer(self, weights) -> list[tuple[Tensor | None, ...]]:
        """The flat list of weights, those of a layer and direction together, in NAMES' order."""
        here = [True, True, bool(self.biases & 1), bool(self.biases & 2), self.projected]
        rest = iter(weights)
        return [
            tuple(next(rest) if there else None for there in here)
            for _ in range(len(weights) // sum(here))
        ]


def norms_by_layer(norms, layers: int) -> list[tuple[Tensor | None, ...]]:
    """The flat list of norms so, for `layers` layers and directions, in NORMS' order."""
    if not norms:
        return [NO_NORMS] * layers
    each = len(norms) // layers  # without the cell's bias, one less
    return [(*norms[k * each : (k + 1) * each], *NO_NORMS)[: len(NORMS)] for k in range(layers)]


class PlainLayers(NamedTuple):
    """weights: of each layer, in NAMES' order."""

    settings: Settings
    weights: list[tuple[Tensor | None, ...]]

    def forward(self, k: int, x, h, c, piece: Piece, save_tape: bool, save_cells: bool):
        none = (None,) * len(NAMES)
        switches = self.settings.wide_products, save_tape, save_cells
        output, h, c, cells, gates = self.settings.op("layer_forward")(
            x, h, c, *self.weights[k], *none, *piece.masks, *switches
        )
        return output, h, c, cells, (output, cells, gates)

    def backward(
        self, k: int, grads, x, h, c, tape, piece: Piece, need_dx: bool, needs: list[bool]
    ):
        weight_ih, weight_hh, _, _, weight_hr = self.weights[k]
        matrices = weight_ih, weight_hh, weight_hr, None, None, None
        switches = self.settings.wide_products, need_dx, any(needs)
        dx, dh, dc, *found = self.settings.op("layer_backward")(
            *grads, x, h, c, *matrices, *tape, *piece.masks, *switches
        )
        if not any(needs):
            return dx, dh, dc, None
        dweight_ih, dweight_hh, dbias, dweight_hr = found
        dweight_hr = None if weight_hr is None else dweight_hr[0]
        return dx, dh, dc, (dweight_ih[0], dweight_hh[0], dbias[0], dbias[0], dweight_hr, *NO_NORMS)


class VariantLayers:
    """Layers with normalisation, recurrent dropout or zoneout; `direction` of each."""

    def __init__(self, settings: Settings, weights, norms, h_mask, seed, direction: int) -> None:
        """h_mask: (layers, N, P) or None."""
        self.settings, self.seed, self.direction = settings, seed, direction
        x_dtype = weights[0][0].dtype
        wide = accumulation_dtype(x_dtype)
        self.product = wide if settings.wide_products else x_dtype
        self.inputs, self.parameters = [], []
        for k, (w, n) in enumerate(zip(weights, norms, strict=True)):
            biases = [b.to(wide) for b in w[2:4] if b is not None]
            gain = None if n[0] is None else n[0].to(wide)
            self.inputs.append((w[0].to(self.product), sum(biases) if biases else None, gain))
            mask = None if h_mask is None else h_mask[k]
            of_recurrence = w[1], w[4], mask, *n[1:]
            self.parameters.append([None if p is None else p[None] for p in of_recurrence])

    def _place(self, k: int, piece: Piece):
        s = self.settings
        stream = 2 * (s.layer + k) + self.direction
        return self.seed, s.zoneout_h, s.zoneout_c, stream, piece.steps.start

    def _existing(self, k: int, x, piece: Piece):
        """x, or zeros where it does not exist; the layers over the first get outputs, 0 there."""
        return reference.existing(x, piece.lengths) if self.settings.layer + k == 0 else x

    def forward(self, k: int, x, h, c, piece: Piece, save_tape: bool, save_cells: bool):
        x = self._existing(k, x, piece)
        weight, bias, gain = self.inputs[k]
        if gain is None:
            gates_x, normed = layer_ops.input_product(x, weight.t(), bias), None
        else:
            product = layer_ops.input_product(x, weight.t(), None).to(gain.dtype)
            gates_x, *moments = torch.native_layer_norm(product, gain.shape, gain, bias, EPSILON)
            normed = (product, *moments) if save_tape else None
        output, h, c, cells, gates = self.settings.op("variant_forward")(
            gates_x.unsqueeze(2), h, c, *self.parameters[k], *piece.masks, *self._place(k, piece),
            save_tape, save_cells,
        )  # fmt: skip
        wide_gates = gates_x.dtype != x.dtype
        return output, h, c, cells, ((output, cells, gates), normed, wide_gates)

    def backward(
        self, k: int, grads, x, h, c, tape, piece: Piece, need_dx: bool, needs: list[bool]
    ):
        need_ih, need_hh, need_bias_ih, need_bias_hh, need_hr, need_gain, *of_norms = needs
        need_bias = need_bias_ih or need_bias_hh
        weight, bias, gain = self.inputs[k]
        (output, cells, gates), normed, wide_gates = tape
        dgates, dh, dc, *found = self.settings.op("variant_backward")(
            *grads, None, h, c, *self.parameters[k], output, cells, gates, *piece.masks,
            *self._place(k, piece), wide_gates, [need_hh, need_hr, *of_norms],
        )  # fmt: skip
        dgates, dgain, dbias = dgates.squeeze(2), None, None
        if normed is not None:
            wanted = True, need_gain, need_bias
            product, mean, inverse = normed
            dgates, dgain, dbias = torch.ops.aten.native_layer_norm_backward(
                dgates.to(gain.dtype), product, gain.shape, mean, inverse, gain, bias, wanted
            )
        elif need_bias:
            dbias = dgates.sum((0, 1))
        rows = dgates.to(self.product).flatten(0, 1)
        dx = (rows @ weight).view_as(x).to(x.dtype) if need_dx else None
        dweight_ih = None
        if need_ih:
            dweight_ih = rows.t() @ self._existing(k, x, piece).flatten(0, 1).to(self.product)
        # Without elements where nothing is wanted.
        dweight_hh, dweight_hr, *dnorms = (g[0] if g.numel() else None for g in found)
        return dx, dh, dc, (dweight_ih, dweight_hh, dbias, dbias, dweight_hr, dgain, *dnorms)
