"""Layers on one chunk of steps (chunks.py), one direction of each: by the ops of whole layers
(ops/layer.py), or by the variants' recurrence (ops/variant.py) with the products around it.

Both classes have the same methods: `forward` returns a layer's results (with D = 1) and a tape for
`backward`, which returns the gradients of x, of the states (1, N, ...), and of the weights and
norms, None where not wanted.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import layer as layer_ops
from ...ops.library import op
from ...ops.recurrence import Results
from ...ops.variant import VariantBackward, VariantForward, VariantGrads, VariantNeeds
from ...ops.weight_gradients import product_of_steps
from ...precision import accumulation_dtype
from ...reference import lstm as reference
from ...reference.variant import EPSILON
from ...weights import LayerNormWeights, LSTMWeights
from .chunks import Chunk

NO_NORMS = LayerNormWeights(None, None, None)


class Gradients(NamedTuple):
    dx: Tensor | None
    dh: Tensor
    dc: Tensor
    weights: LSTMWeights
    norms: LayerNormWeights


class PlainLayers:
    """call: `CheckpointedForward` or `CheckpointedBackward`. weights: of each layer."""

    def __init__(self, call, weights: list[LSTMWeights]) -> None:
        self.call, self.weights = call, weights
        self.run_forward = op(f"{call.family}_layer_forward")
        self.run_backward = op(f"{call.family}_layer_backward")

    def forward(self, k: int, x, h, c, chunk: Chunk, save_tape: bool, save_cells: bool):
        nothing = LSTMWeights(None, None)
        results = Results(
            *self.run_forward(
                *layer_ops.LayerForward(
                    x, h, c, *self.weights[k], *nothing, chunk.lengths, chunk.reset_mask,
                    self.call.wide_products, save_tape, save_cells,
                )
            )
        )  # fmt: skip
        return results, results

    def backward(self, k: int, grads, x, h, c, tape: Results, chunk: Chunk, need_dx: bool, needs):
        """grads: of output, h_n, c_n and cells. needs: (`LSTMWeights`, `LayerNormWeights`) with a
        bool for each gradient."""
        w, (wanted, _) = self.weights[k], needs
        found = layer_ops.LayerGrads(
            *self.run_backward(
                *layer_ops.LayerBackward(
                    *grads, x, h, c, w.weight_ih, w.weight_hh, w.weight_hr, None, None, None,
                    tape.output, tape.cells, tape.gates, chunk.lengths, chunk.reset_mask,
                    self.call.wide_products, need_dx, any(wanted),
                )
            )
        )  # fmt: skip
        dweights = LSTMWeights(None, None)
        if any(wanted):
            dweights = LSTMWeights(
                found.dweight_ih[0],
                found.dweight_hh[0],
                found.dbias[0],
                found.dbias[0],
                None if w.weight_hr is None else found.dweight_hr[0],
            )
        return Gradients(found.dx, found.dh0, found.dc0, dweights, NO_NORMS)


class _Normalised(NamedTuple):
    """The tape of the input product's normalisation."""

    product: Tensor
    mean: Tensor
    inverse: Tensor


class VariantLayers:
    """Layers with normalisation, recurrent dropout or zoneout; `direction` of each."""

    def __init__(self, call, weights, norms, h_mask, direction: int) -> None:
        """h_mask: (layers, N, P) or None."""
        self.call, self.direction = call, direction
        x_dtype, wide = call.x.dtype, accumulation_dtype(call.x.dtype)
        self.product = wide if call.wide_products else x_dtype
        self.run_forward = op(f"{call.family}_variant_forward")
        self.run_backward = op(f"{call.family}_variant_backward")
        self.inputs, self.parameters = [], []
        for k, (w, n) in enumerate(zip(weights, norms, strict=True)):
            biases = [b.to(wide) for b in (w.bias_ih, w.bias_hh) if b is not None]
            gain = None if n.weight_ih is None else n.weight_ih.to(wide)
            self.inputs.append((w.weight_ih.to(self.product), sum(biases) if biases else None, gain))
            mask = None if h_mask is None else h_mask[k]
            of_recurrence = w.weight_hh, w.weight_hr, mask, n.weight_hh, n.weight_c, n.bias_c
            self.parameters.append([None if p is None else p[None] for p in of_recurrence])

    def _place(self, k: int, chunk: Chunk):
        """The arguments of zoneout's masks: seed, zoneout_h, zoneout_c, stream, first_step."""
        call = self.call
        stream = 2 * (call.layer + k) + self.direction
        return call.seed, call.zoneout_h, call.zoneout_c, stream, chunk.steps.start

    def _existing(self, k: int, x, chunk: Chunk):
        """x with zeros at steps that do not exist, where the outputs of lower layers have them."""
        return reference.existing(x, chunk.lengths) if self.call.layer + k == 0 else x

    def forward(self, k: int, x, h, c, chunk: Chunk, save_tape: bool, save_cells: bool):
        x = self._existing(k, x, chunk)
        weight, bias, gain = self.inputs[k]
        if gain is None:
            gates_x, normed = layer_ops.input_product(x, weight.t(), bias), None
        else:
            product = layer_ops.input_product(x, weight.t(), None).to(gain.dtype)
            gates_x, *moments = torch.native_layer_norm(product, gain.shape, gain, bias, EPSILON)
            normed = _Normalised(product, *moments) if save_tape else None
        call = VariantForward(
            gates_x.unsqueeze(2), h, c, *self.parameters[k], chunk.lengths, chunk.reset_mask,
            *self._place(k, chunk), save_tape, save_cells,
        )  # fmt: skip
        results = Results(*self.run_forward(*call))
        return results, (results, normed, call.wide_gates)

    def backward(self, k: int, grads, x, h, c, tape, chunk: Chunk, need_dx: bool, needs):
        """As `PlainLayers.backward`."""
        wanted, of_norms = needs
        weight, bias, gain = self.inputs[k]
        results, normed, wide_gates = tape
        of_recurrence = VariantNeeds(
            wanted.weight_hh, wanted.weight_hr, of_norms.weight_hh, of_norms.weight_c,
            of_norms.bias_c,
        )  # fmt: skip
        found = VariantGrads(
            *self.run_backward(
                *VariantBackward(
                    *grads, None, h, c, *self.parameters[k], results.output, results.cells,
                    results.gates, chunk.lengths, chunk.reset_mask, *self._place(k, chunk),
                    wide_gates, list(of_recurrence),
                )
            )
        )  # fmt: skip
        dgates, dgain, dbias = found.dgates_x.squeeze(2), None, None
        need_bias = wanted.bias_ih or wanted.bias_hh
        if normed is not None:
            dgates, dgain, dbias = torch.ops.aten.native_layer_norm_backward(
                dgates.to(gain.dtype), normed.product, gain.shape, normed.mean, normed.inverse,
                gain, bias, (True, of_norms.weight_ih, need_bias),
            )  # fmt: skip
        elif need_bias:
            dbias = dgates.sum((0, 1))
        dgates, dx, dweight_ih = dgates.to(self.product), None, None
        if need_dx:
            dx = (dgates.flatten(0, 1) @ weight).view_as(x).to(x.dtype)
        if wanted.weight_ih:
            dweight_ih = product_of_steps(dgates, self._existing(k, x, chunk))

        def made(grad):  # a gradient that is not wanted has no elements
            return grad[0] if grad.numel() else None

        return Gradients(
            dx,
            found.dh0,
            found.dc0,
            LSTMWeights(dweight_ih, made(found.dweight_hh), dbias, dbias, made(found.dweight_hr)),
            LayerNormWeights(dgain, made(found.dnorm_hh), made(found.dnorm_c), made(found.dbias_c)),
        )
