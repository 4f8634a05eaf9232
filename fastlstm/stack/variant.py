"""The layers of an LSTM that has more than torch.nn.LSTM, one after the other.

Around the recurrence op (ops/variant.py) all is ordinary differentiable torch: the input product,
its layer normalisation, the dropped weights.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import transforms
from ..precision import accumulation_dtype
from ..reference import lstm as reference
from ..reference.variant import EPSILON, variant_forward
from ..weights import Variant


def dropped(layers, p: float):
    """The layers with each weight_hh behind a dropout mask of its own: one for all steps and rows
    (DropConnect; Merity, Keskar & Socher 2018, "Regularizing and optimizing LSTM language
    models")."""
    return [[w._replace(weight_hh=F.dropout(w.weight_hh, p)) for w in layer] for layer in layers]


def draw_seed(variant: Variant, device: torch.device) -> Tensor | None:
    """The seed (1,) of the call's masks of zoneout, where it draws any."""
    if not (variant.training and any(variant.zoneout)):
        return None
    return torch.randint(2**63 - 1, (1,), device=device)


def draw_h_mask(variant: Variant, h: Tensor) -> Tensor | None:
    """Recurrent dropout's mask of h, wide, or None."""
    if not (variant.training and variant.recurrent_dropout):
        return None
    ones = torch.ones_like(h, dtype=accumulation_dtype(h.dtype))
    return F.dropout(ones, variant.recurrent_dropout)


def _stacked(tensors) -> Tensor | None:
    return None if tensors[0] is None else torch.stack(tensors)


def _gates_x(x, weights_ih, biases, gains, wide_products: bool) -> Tensor:
    """(T, N, D, 4H): W_ih x, normalised where there are gains, and the biases."""
    wide = accumulation_dtype(x.dtype)
    product = wide if wide_products else x.dtype
    matrix = torch.cat(weights_ih).to(product)
    biases = [b.to(wide) for b in map(_stacked, biases) if b is not None]
    gates_x = (x.to(product) @ matrix.t()).unflatten(-1, (len(weights_ih), -1))
    if gains[0] is not None:
        gains = torch.stack(gains).to(wide)
        gates_x = F.layer_norm(gates_x.to(wide), gates_x.shape[-1:], eps=EPSILON) * gains
    if biases:
        gates_x = gates_x + sum(biases)
    return gates_x


def _recurrence(family: str):
    """The recurrence with the arguments of its op (ops/variant.py)."""
    if transforms.active():
        # Plain torch, which torch.func and forward-mode AD take as it is.
        return lambda *args: variant_forward(*args[:-2])
    return getattr(torch.ops.fastlstm, f"{family}_variant_forward")


def run_layer(
    family, x, h, c, weights, norms, h_mask, lengths, reset_mask, seed, zoneout, layer: int,
    first_step: int, wide_products: bool, save_cells: bool,
):  # fmt: skip
    """One layer, all its directions: output, h_n, c_n, cells and gates.

    weights, norms: of each direction, in the order of `LSTMWeights` and
    `LayerNormWeights`, the norms all None without normalisation. layer: its number in the stack.
    """
    weights_ih, weights_hh, *biases, weights_hr = zip(*weights, strict=True)
    gains, *norms = zip(*norms, strict=True)
    parameters = (_stacked(weights_hh), _stacked(weights_hr), h_mask, *map(_stacked, norms))
    if layer == 0:  # those over it get outputs, which are 0 where they do not exist
        x = reference.existing(x, lengths)
    inputs = (_gates_x(x, weights_ih, biases, gains, wide_products), h, c, *parameters)
    save_tape = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs)
    return _recurrence(family)(
        *inputs, lengths, reset_mask, seed, *zoneout, 2 * layer, first_step, save_tape, save_cells
    )


def run_layers(
    family: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    layers,
    variant: Variant,
    *,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    return_cells: bool,
    between_layers: Callable[[Tensor], Tensor] | None,
    wide_products: bool,
    seed: Tensor | None = None,
    first_step: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `run.run_layers`, with a variant that changes the recurrence.

    Args:
        seed: (1,) int64, of zoneout's masks; drawn from torch's generator where None.
        first_step: the place of x's first step in the sequence that these masks are for.
    """
    D = len(layers[0])
    if seed is None:
        seed = draw_seed(variant, x.device)
    h_n, c_n, cells = [], [], None
    for k, weights in enumerate(layers):
        last = k == len(layers) - 1
        norms = [(None,) * 4] * D if variant.norms is None else variant.norms[k]
        h, c = h0[k * D : (k + 1) * D], c0[k * D : (k + 1) * D]
        x, h, c, cells, _ = run_layer(
            family, x, h, c, weights, norms, draw_h_mask(variant, h), lengths, reset_mask, seed,
            variant.zoneout, k, first_step, wide_products, return_cells and last,
        )  # fmt: skip
        h_n.append(h)
        c_n.append(c)
        if between_layers is not None and not last:
            x = between_layers(x)
    cells = cells.flatten(2).to(x.dtype) if return_cells else None
    return x, torch.cat(h_n), torch.cat(c_n), cells
