"""`lstm`: a stack of LSTM layers as a function of its input, states and weights.

Per layer it is one op for all directions and steps (layer_ops.py); on a GPU, where the layers of a
stack can run beside each other, one op for all layers (stack_ops.py).
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import (
    backends,
    checkpointing,
    cpu_ops,  # noqa: F401  (what the kernels ask)
    gpu_ops,  # noqa: F401  (registers kernels)
    layer_ops,
    sharded,
    stack_ops,
    transforms,
    variant_kernels,  # noqa: F401  (registers kernels)
    variant_layers,
    weight_storage,
)
from .checks import check_lengths, check_norms, check_reset_mask, check_stack
from .variant_layers import LayerNormWeights, Variant, probability, zoneout_pair


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


def _bf16_tiles() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


# Without AMX, a 16-bit product on the CPU is slower than the float32 one (measured: half its rate
# on AVX512-BF16), so the gate inputs are made, and their gradients used, in float32 there: faster,
# and more exact.
_WIDE_CPU_PRODUCTS = not _bf16_tiles()
_HALF = (torch.bfloat16, torch.float16)
_NO_WEIGHTS = (None,) * 5


def wide_products(x: Tensor) -> bool:
    """Whether the products of a layer on x are made in the accumulation dtype."""
    return _WIDE_CPU_PRODUCTS and x.dtype in _HALF and x.device.type == "cpu"


def _wants_gradient(given, layers) -> bool:
    every = (*given, *(w for layer in layers for weights in layer for w in weights))
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in every)


def run_layers(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    layers: Sequence[Sequence[LSTMWeights]],
    *,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    return_cells: bool,
    between_layers: Callable[[Tensor], Tensor] | None,
    dropout: float,
    backend: str,
    variant: Variant | None = None,
    checkpoint_every: int | bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The layers one after the other on checked, time-major arguments; `lstm` and the module end
    here.

    Args:
        x: (T, N, I). h0: (L*D, N, P). c0: (L*D, N, H). layers: L sequences of D weights.
        between_layers: dropout of each layer's output but the last, or None. dropout: its share.
        variant: what there is beyond the plain LSTM, or None.
        checkpoint_every: steps from one kept state to the next, True or None (checkpointing.py).

    Returns:
        output (T, N, D*P), h_n like h0, c_n like c0, and the last layer's cells (T, N, D*H) or
        None.
    """
    if type(x) is not Tensor and sharded.is_distributed(x):
        return sharded.run_layers(
            run_layers,
            x,
            h0,
            c0,
            layers,
            lengths=lengths,
            reset_mask=reset_mask,
            return_cells=return_cells,
            between_layers=between_layers,
            dropout=dropout,
            backend=backend,
            variant=variant,
            checkpoint_every=checkpoint_every,
        )
    D = len(layers[0])
    wide = wide_products(x)
    call = backends.Call.of(x.device, x.dtype)
    family = backends.select(backend, call).family
    if layers[0][0].weight_hh.dtype != x.dtype and not (
        family == "lstm"
        and x.device.type == "cpu"
        and variant is None
        and not transforms.active()
        and not _wants_gradient((x, h0, c0), layers)
    ):
        layers = weight_storage.widened(layers, x.dtype)
    if variant is not None and variant.training and variant.weight_dropout:
        layers = variant_layers.dropped(layers, variant.weight_dropout)
    if variant is not None and not variant.changes_recurrence():
        variant = None
    if variant is None and transforms.functionalized():
        variant = Variant()
    rest = {
        "lengths": lengths,
        "reset_mask": reset_mask,
        "return_cells": return_cells,
        "between_layers": between_layers,
        "wide_products": wide,
    }
    every = checkpointing.steps_of(checkpoint_every, x.shape[1])
    if checkpointing.serves(every, x, h0, c0, layers, variant):
        return checkpointing.run_layers(family, x, h0, c0, layers, variant, every, **rest)
    if variant is not None:
        return variant_layers.run_layers(family, x, h0, c0, layers, variant, **rest)
    if D == 1 and stack_ops.takes(family, x.device, [layer[0] for layer in layers]):
        return _run_stack(
            family, x, h0, c0, layers, lengths, reset_mask, return_cells, between_layers, dropout
        )
    h_n, c_n, cells = [], [], None
    for k, layer in enumerate(layers):
        last = k == len(layers) - 1
        weights = (*layer[0], *(layer[1] if D == 2 else _NO_WEIGHTS))
        h, c = (h0, c0) if len(layers) == 1 else (h0[k * D : (k + 1) * D], c0[k * D : (k + 1) * D])
        inputs = (x, h, c, *weights)
        save_tape = torch.is_grad_enabled() and any(
            a is not None and a.requires_grad for a in inputs
        )
        args = (*inputs, lengths, reset_mask, wide, save_tape, return_cells and last)
        x, h, c, cells, _ = layer_ops.layer(family, args, save_tape)
        h_n.append(h)
        c_n.append(c)
        if between_layers is not None and not last:
            x = between_layers(x)
    if len(layers) > 1:
        h, c = torch.cat(h_n), torch.cat(c_n)
    return x, h, c, cells.flatten(2).to(x.dtype) if return_cells else None


def _run_stack(
    family, x, h0, c0, layers, lengths, reset_mask, return_cells, between_layers, dropout
):
    """`run_layers` by one op."""
    # To torch, what may be absent is in no list.
    weights = [
        [w for w in of_kind if w is not None]
        for of_kind in zip(*(layer[0] for layer in layers), strict=True)
    ]
    masks = []
    if between_layers is not None:
        # Layer by layer, as dropout between them would draw.
        ones = x.new_ones((*x.shape[:2], h0.shape[2]))
        masks = [between_layers(ones) != 0 for _ in layers[1:]]
    inputs = (x, h0, c0, *(w for of_kind in weights for w in of_kind))
    save_tape = torch.is_grad_enabled() and any(a.requires_grad for a in inputs)
    output, h_n, c_n, cells = stack_ops.forward(
        (
            family, x, h0, c0, *weights, lengths, reset_mask, masks, dropout, save_tape,
            return_cells,
        ),
        save_tape,
    )  # fmt: skip
    return output, h_n, c_n, cells.flatten(2).to(x.dtype) if return_cells else None


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on this device, or None outside autocast."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def to_autocast(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`value` as autocast hands it to an op: in `dtype`, but float64, integers and None as they
    are."""
    if (
        not isinstance(value, Tensor)
        or value.dtype == torch.float64
        or not value.is_floating_point()
    ):
        return value
    return value.to(dtype)


def lstm(
    input: Tensor,
    weights: Sequence[LSTMWeights | Sequence[Tensor | None]],
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
    return_cell_sequence: bool = False,
    layer_norm: Sequence[LayerNormWeights] | None = None,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    checkpoint_every: int | bool | None = None,
    backend: str = "auto",
):
    """A (multi-layer, bidirectional, projected) LSTM with its weights as arguments.

    T steps, N rows, I inputs, H hidden units, P outputs (H, or the projection's size), L layers, D
    directions. All tensors are of one dtype (float64, float32, bfloat16 or float16) and on one
    device; inside autocast they are cast to its dtype. Weight matrices may be bfloat16 beside
    float32 tensors, for inference (`FastLSTM`'s weight_dtype). The computation is that of
    `torch.nn.LSTM`; `fastlstm.reference` has the equations.

    Args:
        input: (T, N, I), or (N, T, I) with batch_first.
        weights: L*D entries, layer by layer, forward before reverse: `LSTMWeights` or tuples in its
        order.
        hx: (h0, c0) of shapes (L*D, N, P) and (L*D, N, H); zeros if None.
        dropout, training: dropout between layers, in training only, and whether what follows draws
        masks.
        lengths: (N,) integers in 0..T, unsorted: steps from lengths[n] on do not exist in row n
        (outputs 0 there).
        reset_mask: (T, N) bool, laid out like input: True where a new episode begins; no state
            crosses into step t from t - 1, in either direction.
        return_cell_sequence: also return every c_t of the last layer.
        layer_norm: a `LayerNormWeights` beside each entry of weights, for layer-normalised gates
        and cells.
        recurrent_dropout: probability with which h is masked on its way into the recurrent
        product, one mask for all steps.
        weight_dropout: probability with which entries of weight_hh are masked, one mask for the
        call.
        zoneout: probability with which h and c keep their old value at a step, or a pair of
        them; not in training, both are the mean. `fastlstm.variant_reference` has the equations
        and the papers.
        checkpoint_every: keep states every so many steps instead of a tape of all, and have the
        backward run the forward of these steps again: see `FastLSTM`.
        backend: "auto", or a name of `fastlstm.backends.NAMES`.

    Returns:
        output (T, N, D*P) laid out like input, (h_n (L*D, N, P), c_n (L*D, N, H)), and with
        return_cell_sequence cells (T, N, D*H), laid out like output.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit the others; the text names it.
        RuntimeError: the backend named cannot serve this device or dtype.
    """
    D = 2 if bidirectional else 1
    weights = [w if isinstance(w, LSTMWeights) else LSTMWeights(*w) for w in weights]
    variant = Variant(
        None if layer_norm is None else [LayerNormWeights(*n) for n in layer_norm],
        probability("recurrent_dropout", recurrent_dropout),
        probability("weight_dropout", weight_dropout),
        zoneout_pair(zoneout),
        training,
    )
    every = checkpointing.check_every(checkpoint_every)
    wanted = autocast_dtype(input.device)
    if wanted is not None:
        input = to_autocast(input, wanted)
        weights = [LSTMWeights(*(to_autocast(a, wanted) for a in w)) for w in weights]
        hx = None if hx is None else tuple(to_autocast(s, wanted) for s in hx)
        if layer_norm is not None:
            norms = [LayerNormWeights(*(to_autocast(a, wanted) for a in n)) for n in variant.norms]
            variant = variant._replace(norms=norms)
    check_stack(input, weights, hx, D, batch_first)
    if layer_norm is not None:
        check_norms(variant.norms, len(weights), weights[0].weight_hh.shape[0] // 4, input)
        norms = [variant.norms[k : k + D] for k in range(0, len(weights), D)]
        variant = variant._replace(norms=norms)
    if batch_first:
        input = input.transpose(0, 1)
    T, N, _ = input.shape
    lengths = check_lengths(lengths, T, N, input.device)
    reset_mask = check_reset_mask(
        reset_mask, T, N, input.device, "(N, T)" if batch_first else "(T, N)"
    )
    if hx is None:
        H = weights[0].weight_hh.shape[0] // 4
        hx = (
            input.new_zeros(len(weights), N, weights[0].weight_hh.shape[1]),
            input.new_zeros(len(weights), N, H),
        )
    between = (lambda y: F.dropout(y, dropout, True)) if training and dropout else None
    with torch.autocast(input.device.type, enabled=False) if wanted else contextlib.nullcontext():
        output, h_n, c_n, cells = run_layers(
            input,
            *hx,
            [weights[k : k + D] for k in range(0, len(weights), D)],
            lengths=lengths,
            reset_mask=reset_mask,
            return_cells=return_cell_sequence,
            between_layers=between,
            dropout=dropout,
            backend=backend,
            variant=variant,
            checkpoint_every=every,
        )
    if batch_first:
        output = output.transpose(0, 1)
        cells = None if cells is None else cells.transpose(0, 1)
    return (output, (h_n, c_n), cells) if return_cell_sequence else (output, (h_n, c_n))
