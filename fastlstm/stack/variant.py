"""Layers with layer normalisation, recurrent dropout or zoneout, one after the other.

The recurrence is an op (ops/variant.py); everything else is plain differentiable torch: the input
product, its layer normalisation, weight dropout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import transforms
from ..ops.library import op
from ..ops.recurrence import Results
from ..ops.variant import VariantForward
from ..precision import accumulation_dtype
from ..reference import lstm as reference
from ..reference.variant import EPSILON, variant_forward
from ..weights import LayerNormWeights, Rest, Variant


def dropped(layers, p: float):
    """The layers with dropout of each weight_hh, one mask for all steps and rows (DropConnect;
    Merity, Keskar & Socher 2018, "Regularizing and optimizing LSTM language models")."""
    return [[w._replace(weight_hh=F.dropout(w.weight_hh, p)) for w in layer] for layer in layers]


def draw_seed(variant: Variant, device: torch.device) -> Tensor | None:
    """The seed (1,) of a call's zoneout masks, None if it needs none."""
    if not (variant.training and any(variant.zoneout)):
        return None
    return torch.randint(2**63 - 1, (1,), device=device)


def draw_h_mask(variant: Variant, h: Tensor) -> Tensor | None:
    """Recurrent dropout's mask of h in the accumulation dtype, or None."""
    if not (variant.training and variant.recurrent_dropout):
        return None
    ones = torch.ones_like(h, dtype=accumulation_dtype(h.dtype))
    return F.dropout(ones, variant.recurrent_dropout)


def _stacked(directions, name: str) -> Tensor | None:
    """(D, ...) from the directions' weights of this name; None if these are None."""
    tensors = [getattr(weights, name) for weights in directions]
    return None if tensors[0] is None else torch.stack(tensors)


def _gates_x(x: Tensor, weights, norms, wide_products: bool) -> Tensor:
    """(T, N, D, 4H): W_ih x, normalised if there are gains, plus the biases."""
    wide = accumulation_dtype(x.dtype)
    product = wide if wide_products else x.dtype
    matrix = torch.cat([w.weight_ih for w in weights]).to(product)
    gates_x = (x.to(product) @ matrix.t()).unflatten(-1, (len(weights), -1))
    gains = _stacked(norms, "weight_ih")
    if gains is not None:
        gates_x = F.layer_norm(gates_x.to(wide), gates_x.shape[-1:], eps=EPSILON) * gains.to(wide)
    biases = (_stacked(weights, name) for name in ("bias_ih", "bias_hh"))
    biases = [b.to(wide) for b in biases if b is not None]
    return gates_x + sum(biases) if biases else gates_x


def _run(prefix: str, call: VariantForward) -> Results:
    if transforms.active():
        # The reference: torch.func and forward-mode AD support plain torch.
        *given, _save_tape, _save_cells = call
        return Results(*variant_forward(*given))
    return Results(*op(f"{prefix}_variant_forward")(*call))


def run_layer(
    prefix, x, h, c, weights, norms, h_mask, lengths, reset_mask, seed, zoneout, layer: int,
    wide_products: bool, save_cells: bool,
) -> Results:  # fmt: skip
    """One layer, all its directions.

    weights, norms: `LSTMWeights` and `LayerNormWeights` of each direction, the norms all None
    without normalisation. layer: its index in the stack.
    """
    if layer == 0:  # the outputs that other layers get are 0 at steps that do not exist
        x = reference.existing(x, lengths)
    inputs = (
        _gates_x(x, weights, norms, wide_products), h, c, _stacked(weights, "weight_hh"),
        _stacked(weights, "weight_hr"), h_mask, _stacked(norms, "weight_hh"),
        _stacked(norms, "weight_c"), _stacked(norms, "bias_c"),
    )  # fmt: skip
    save_tape = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs)
    call = VariantForward(*inputs, lengths, reset_mask, seed, *zoneout, 2 * layer, 0, save_tape, save_cells)
    return _run(prefix, call)


def run_layers(
    prefix: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    layers,
    variant: Variant,
    rest: Rest,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `run.run_layers`, with a variant that changes the recurrence."""
    D, seed = len(layers[0]), draw_seed(variant, x.device)
    h_n, c_n = [], []
    for k, weights in enumerate(layers):
        last = k == len(layers) - 1
        norms = [LayerNormWeights(None, None, None)] * D
        if variant.norms is not None:
            norms = variant.norms[k]
        h, c = h0[k * D : (k + 1) * D], c0[k * D : (k + 1) * D]
        results = run_layer(
            prefix, x, h, c, weights, norms, draw_h_mask(variant, h), rest.lengths,
            rest.reset_mask, seed, variant.zoneout, k, rest.wide_products,
            rest.return_cells and last,
        )  # fmt: skip
        x = results.output
        h_n.append(results.h_n)
        c_n.append(results.c_n)
        if rest.between_layers is not None and not last:
            x = rest.between_layers(x)
    cells = results.cells.flatten(2).to(x.dtype) if rest.return_cells else None
    return x, torch.cat(h_n), torch.cat(c_n), cells
