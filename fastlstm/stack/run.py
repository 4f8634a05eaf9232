"""Runs the layers of a call by the ops that support it.

These are, in this order: one op for the whole stack (whole.py); the variants' (variant.py); on a
GPU one op for layers that run concurrently (wavefront/ops.py); one op for each layer
(ops/layer.py).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import backends
from ..backends import cpu, gpu  # noqa: F401  (register kernels)
from ..int8 import Int8Weights
from ..ops import layer as layer_ops
from ..ops import transforms
from ..ops.library import library, register_autograd_later
from ..precision import accumulation_dtype, wide_products
from ..weights import LSTMWeights, Rest, Variant, flat, widened
from . import distributed, int8, whole
from . import variant as variant_layers
from .alone import beside_each_other, needed, pair_for
from .between import collecting, noises
from .checkpoint import layers as checkpointing
from .wavefront import ops as stack_ops
from .wavefront import plan

_NO_WEIGHTS = (None,) * 5


def _changes(variant: Variant) -> bool:
    """Whether the plain LSTM's ops do not support the variant."""
    return variant.changes_recurrence() or bool(variant.training and variant.weight_dropout)


def _wants_gradient(given, layers) -> bool:
    every = (*given, *(w for layer in layers for weights in layer for w in weights))
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in every)


def run_layers(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    layers: Sequence[Sequence[LSTMWeights]],
    *,
    backend: str,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
    return_cells: bool = False,
    between_layers: Callable[[Tensor], Tensor] | None = None,
    dropout: float = 0.0,
    variant: Variant | None = None,
    checkpoint_every: int | bool | None = None,
    layer_outputs: list[Tensor] | None = None,
    own_output: bool = True,
    weight_only: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Runs all layers on checked, time-major arguments: for `functional.lstm` and FastLSTM.

    Args:
        x: (T, N, I). h0: (L*D, N, P). c0: (L*D, N, H). layers: L sequences of D weights, all of
        them `LSTMWeights` or all `Int8Weights`.
        between_layers: dropout of each layer's output but the last, or None. dropout: its
        probability.
        variant: what the call has beyond the plain LSTM, or None.
        checkpoint_every: steps between saved states, True or None (`checkpoint`).
        layer_outputs: a list to append each layer's output (T, N, D*P) to, before dropout, but not
        the last.
        own_output: whether output and cells must not share memory with the tape; False if nobody
        writes to them.
        weight_only: with `Int8Weights`, whether inputs and states are not quantised.

    Returns:
        output (T, N, D*P), h_n like h0, c_n like c0, and the last layer's cells (T, N, D*H) or
        None.
    """
    if type(x) is not Tensor and distributed.is_distributed(x):
        if isinstance(layers[0][0], Int8Weights):
            raise ValueError(
                "input: got a DTensor, which int8 weights do not take; give each device its own "
                "rows, or widen the weights: weight_dtype = None"
            )
        return distributed.run_layers(
            run_layers, x, h0, c0, layers, lengths=lengths, reset_mask=reset_mask,
            return_cells=return_cells, between_layers=between_layers, dropout=dropout,
            backend=backend, variant=variant, checkpoint_every=checkpoint_every,
            layer_outputs=layer_outputs, own_output=own_output,
        )  # fmt: skip
    if layer_outputs is not None:
        between_layers = collecting(between_layers, layer_outputs)
    D = len(layers[0])
    wide = wide_products(x)
    call = backends.Call.of(x.device, x.dtype)
    row = backends.select(backend, call)
    prefix = row.prefix
    if isinstance(layers[0][0], Int8Weights):
        if row.name in ("cpu", "reference") and (variant is None or not _changes(variant)):
            return int8.run_layers(
                x, h0, c0, layers, lengths=lengths, reset_mask=reset_mask,
                return_cells=return_cells, between_layers=between_layers,
                reference=backend == "reference", weight_only=weight_only,
            )  # fmt: skip
        int8.refuse_gradients(input=x, h0=h0, c0=c0, **int8.norms_by_name(variant))
        layers = int8.widened(layers)
    if layers[0][0].weight_hh.dtype != x.dtype and not (
        prefix == "lstm"
        and x.device.type == "cpu"
        and variant is None
        and not transforms.active()
        and not _wants_gradient((x, h0, c0), layers)
    ):
        layers = widened(layers, x.dtype)
    if variant is not None and variant.training and variant.weight_dropout:
        layers = variant_layers.dropped(layers, variant.weight_dropout)
    if variant is not None and not variant.changes_recurrence():
        variant = None
    if variant is None and transforms.functionalized():
        variant = Variant()
    rest = Rest(lengths, reset_mask, return_cells, between_layers, wide)
    every = checkpointing.steps_of(checkpoint_every, x.shape[1])
    if checkpointing.serves(every, x, h0, c0, layers, variant):
        return checkpointing.run_layers(prefix, x, h0, c0, layers, variant, every, rest)
    if variant is None and layer_outputs is None:
        results = _run_whole(prefix, x, h0, c0, layers, rest, backend, dropout, own_output)
        if results is not None:
            return results
    stackable = D == 1 and layer_outputs is None
    if variant is not None:
        results = variant_layers.run_layers(prefix, x, h0, c0, layers, variant, rest)
    elif stackable and _beside_each_other(prefix, x, layers):
        results = _run_stack(prefix, x, h0, c0, layers, rest, dropout)
    else:
        results = _run_each(prefix, x, h0, c0, layers, rest)
    return _beside_the_tape(*results) if own_output else results


def _beside_each_other(prefix, x, layers) -> bool:
    """Whether layers of one direction are one op that runs them concurrently."""
    if not stack_ops.takes(prefix, x.device, [layer[0] for layer in layers]):
        return False
    if torch.compiler.is_compiling():
        return True  # the op decides when it runs
    T, N, _ = x.shape
    first = layers[0][0]
    sizes = T, N, len(layers), first.weight_hh.shape[0] // 4
    return plan.chunk_steps(prefix, x.device, x.dtype, sizes, first.weight_hr is not None) < T


def _beside_the_tape(output, h_n, c_n, cells):
    """The results with copies of output and cells where the tape has them: the caller may write to
    its own (`output += x`).

    A copy of the output is a sixth of the rest of the tape, and takes one pass over memory.
    Computed again from gates and cells, the output would be rounded differently in 16 bits, need a
    product with a projection, and a loop over steps with zoneout.
    """
    # Inside a transform, requires_grad does not tell what the outer transforms need.
    taped = torch.is_grad_enabled() and (output.requires_grad or transforms.active())
    if taped and not torch.compiler.is_exporting():
        output = _copied(output)
        if cells is not None and cells.dtype == accumulation_dtype(cells.dtype):  # else cast
            cells = _copied(cells)
    return output, h_n, c_n, cells


def _copied(tensor: Tensor) -> Tensor:
    if torch.compiler.is_compiling() and not transforms.active():
        return torch.ops.fastlstm.copied(tensor)
    return tensor.clone()


# A clone that Inductor does not optimise away.
library.define("copied(Tensor x) -> Tensor")
library.impl("copied", torch.clone, "CompositeExplicitAutograd")
torch.library.register_fake("fastlstm::copied", torch.clone, lib=library)
register_autograd_later("copied", lambda ctx, grad: grad)


def _run_whole(prefix, x, h0, c0, layers, rest: Rest, backend, dropout, own_output):
    """`run_layers` by one op for the whole stack; None if it does not support the call."""
    pair = pair_for(x, backend)
    if pair is None or pair.prefix != prefix:
        return None
    first = layers[0][0]
    if (first.bias_ih is None) != (first.bias_hh is None):
        return None
    weights = flat(layers)
    needs = needed(x, h0, c0, weights)
    if needs is None:
        return None
    T, N, D = *x.shape[:2], len(layers[0])
    if D == 1 and beside_each_other(pair, x, T, N, weights, len(layers)):
        return None
    noise = None
    if rest.between_layers is not None and len(layers) > 1:
        ones = x.new_ones((T, N, D * h0.shape[2]))
        noise = noises(rest.between_layers, ones, len(layers) - 1, dropout)
    options = {
        "lengths": rest.lengths,
        "reset_mask": rest.reset_mask,
        "noise": noise,
        "layers": len(layers),
        "bidirectional": D == 2,
        "wide_products": rest.wide_products,
        "save_cells": rest.return_cells,
        "own_output": own_output,
    }
    results = whole.run(pair, needs, x, h0, c0, weights, options)
    if results is None:
        return None
    output, h_n, c_n, *cells = results
    return output, h_n, c_n, *(cells or (None,))


def _run_each(prefix, x, h0, c0, layers, rest: Rest):
    """`run_layers` by an op for each layer."""
    D = len(layers[0])
    lengths, reset_mask, return_cells, between_layers, wide_products = rest
    h_n, c_n, cells = [], [], None
    for k, layer in enumerate(layers):
        last = k == len(layers) - 1
        weights = (*layer[0], *(layer[1] if D == 2 else _NO_WEIGHTS))
        h, c = (h0, c0) if len(layers) == 1 else (h0[k * D : (k + 1) * D], c0[k * D : (k + 1) * D])
        inputs = (x, h, c, *weights)
        save_tape = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs)
        args = (*inputs, lengths, reset_mask, wide_products, save_tape, return_cells and last)
        x, h, c, cells, _ = layer_ops.layer(prefix, args, save_tape)
        h_n.append(h)
        c_n.append(c)
        if between_layers is not None and not last:
            x = between_layers(x)
    if len(layers) > 1:
        h, c = torch.cat(h_n), torch.cat(c_n)
    return x, h, c, cells.flatten(2).to(x.dtype) if return_cells else None


def _run_stack(prefix, x, h0, c0, layers, rest: Rest, dropout):
    """`run_layers` by one op that runs the layers concurrently."""
    # A list of tensors in a schema cannot contain None.
    weights = [[w for w in of_kind if w is not None] for of_kind in zip(*(layer[0] for layer in layers), strict=True)]
    masks = []
    if rest.between_layers is not None:
        # Drawn layer by layer, in the order of dropout between layers.
        ones = x.new_ones((*x.shape[:2], h0.shape[2]))
        masks = [rest.between_layers(ones) != 0 for _ in layers[1:]]
    inputs = (x, h0, c0, *(w for of_kind in weights for w in of_kind))
    save_tape = torch.is_grad_enabled() and any(a.requires_grad for a in inputs)
    output, h_n, c_n, cells = stack_ops.forward(
        (
            prefix, x, h0, c0, *weights, rest.lengths, rest.reset_mask, masks, dropout, save_tape,
            rest.return_cells,
        ),
        save_tape,
    )  # fmt: skip
    return output, h_n, c_n, cells.flatten(2).to(x.dtype) if rest.return_cells else None
