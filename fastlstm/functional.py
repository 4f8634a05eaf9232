"""`lstm`: a stack of LSTM layers as a function of its input, states and weights."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import (
    check_lengths,
    check_norms,
    check_reset_mask,
    check_stack,
    layers_first,
    probability,
    swapped_states,
    zoneout_pair,
)
from .int8 import Int8Weights, check_int8_stack, sizes_of
from .precision import autocast_dtype, to_autocast
from .stack.between import dropping
from .stack.checkpoint import layers as checkpointing
from .stack.run import run_layers
from .weights import LayerNormWeights, LSTMWeights, Variant


def lstm(
    input: Tensor,
    weights: Sequence[LSTMWeights | Int8Weights | Sequence[Tensor | None]],
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
    variational_dropout: bool = False,
    batch_first_states: bool = False,
    return_layer_outputs: bool = False,
    weight_only: bool = False,
    backend: str = "auto",
) -> tuple[Any, ...]:
    """A (multi-layer, bidirectional, projected) LSTM with its weights as arguments.

    T steps, N rows, I inputs, H hidden units, P outputs (H, or the projection's size), L layers, D
    directions. All tensors are of one dtype (float64, float32, bfloat16 or float16) and on one
    device; inside autocast they are cast to its dtype. Weight matrices may be bfloat16 beside
    float32 tensors, for inference (`FastLSTM`'s weight_dtype). The computation is that of
    `torch.nn.LSTM`; `fastlstm.reference.lstm` has the equations.

    Args:
        input: (T, N, I), or (N, T, I) with batch_first.
        weights: L*D entries, layer by layer, forward before reverse: `LSTMWeights` or tuples in its
        order; or `fastlstm.int8.Int8Weights`, as `fastlstm.int8.quantise` makes them of such, for
        inference on float32 tensors.
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
        them; not in training, both are the mean. `fastlstm.reference.variant` has the equations
        and the papers.
        checkpoint_every: keep states every so many steps instead of a tape of all, and have the
        backward run the forward of these steps again: see `FastLSTM`.
        variational_dropout: `dropout` draws one mask (N, D*P) for all steps.
        batch_first_states: hx, h_n and c_n are (N, L*D, P) and (N, L*D, H).
        return_layer_outputs: also return the outputs of all layers.
        weight_only: with `Int8Weights`, quantise nothing but the weights; see `FastLSTM`.
        backend: "auto", or a name of `fastlstm.backends.NAMES`.

    Returns:
        output (T, N, D*P) laid out like input, (h_n (L*D, N, P), c_n (L*D, N, H)), with
        return_cell_sequence cells (T, N, D*H), laid out like output, and with return_layer_outputs
        a tuple of L outputs, each before dropout and laid out like output, which is the last.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit the others; the text names it.
        RuntimeError: the backend named cannot serve this device or dtype, or a gradient is wanted
        beside int8 weights.
    """
    D = 2 if bidirectional else 1
    given = (LSTMWeights, Int8Weights)
    weights = [w if isinstance(w, given) else LSTMWeights(*w) for w in weights]
    int8 = any(isinstance(w, Int8Weights) for w in weights)
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
        wanted = torch.float32 if int8 else wanted
        input = to_autocast(input, wanted)
        if not int8:
            weights = [LSTMWeights(*(to_autocast(a, wanted) for a in w)) for w in weights]
        hx = None if hx is None else tuple(to_autocast(s, wanted) for s in hx)
        if layer_norm is not None:
            norms = [LayerNormWeights(*(to_autocast(a, wanted) for a in n)) for n in variant.norms]
            variant = variant._replace(norms=norms)
    check = check_int8_stack if int8 else check_stack
    if weight_only and not int8:
        raise ValueError("weight_only: it is for weights of fastlstm.int8.quantise")
    if batch_first_states and hx is not None:
        check(input, weights, None, D, batch_first)
        N, (P, H) = input.shape[0 if batch_first else 1], sizes_of(weights[0])
        hx = layers_first(hx, (len(weights), N, P), (len(weights), N, H))
    check(input, weights, hx, D, batch_first)
    P, H = sizes_of(weights[0])
    if layer_norm is not None:
        check_norms(variant.norms, len(weights), H, input)
        norms = [variant.norms[k : k + D] for k in range(0, len(weights), D)]
        variant = variant._replace(norms=norms)
    if batch_first:
        input = input.transpose(0, 1)
    T, N, _ = input.shape
    lengths = check_lengths(lengths, T, N, input.device)
    reset_mask = check_reset_mask(reset_mask, T, N, input.device, "(N, T)" if batch_first else "(T, N)")
    if hx is None:
        hx = tuple(input.new_zeros(len(weights), N, width) for width in (P, H))
    between, outputs = None, [] if return_layer_outputs else None
    if training and dropout:
        between = dropping(dropout, variational_dropout)
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
            layer_outputs=outputs,
            weight_only=weight_only,
        )
    if batch_first:
        output = output.transpose(0, 1)
        cells = None if cells is None else cells.transpose(0, 1)
        outputs = None if outputs is None else [y.transpose(0, 1) for y in outputs]
    states = swapped_states((h_n, c_n)) if batch_first_states else (h_n, c_n)
    outputs = None if outputs is None else (*outputs, output)
    return output, states, *(more for more in (cells, outputs) if more is not None)
