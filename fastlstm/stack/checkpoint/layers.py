"""Layers without a tape of all steps: the forward saves the states every K steps, and the backward
runs the forward of K steps again, with a tape, before it goes back through them.

L layers of one direction are one op, which saves x (the caller's own) and each layer's (h, c) at
every K-th step; of two directions each layer is one. Between chunks c and the gradients of both
states are in the accumulation dtype, so that nothing is rounded that a call without chunks would
not round.
"""

import torch
from torch import Tensor

from ...ops import transforms
from ...ops.library import op
from ...weights import Rest, Variant, flat
from .. import variant as variant_layers
from . import ops  # noqa: F401  (registers its ops)
from .calls import CheckpointedForward, CheckpointedResults, biases_of

DEFAULT = 64  # steps between saved states
ROWS = 256  # steps * N that a chunk should have: with fewer, reading the weights takes long


def check_every(every: int | bool | None) -> int | bool | None:
    """`every` as a number of steps, True for `steps_of` to choose it, or None for no checkpoints.

    Raises:
        ValueError: it is none of None, a bool and a positive int.
    """
    if isinstance(every, bool):
        return every or None
    if every is not None and (not isinstance(every, int) or every < 1):
        raise ValueError(
            f"checkpoint_every: got {every!r}, expected a positive int, the steps from one kept "
            f"state to the next, True for {DEFAULT} of them, with few rows more, or None"
        )
    return every


def steps_of(every: int | bool | None, N: int) -> int | None:
    """The number of steps between saved states, for N rows: if `every` is True `DEFAULT`, or with
    few rows a multiple of it for which a chunk has about `ROWS` rows."""
    if every is not True:
        return every
    if torch.compiler.is_compiling():  # one graph for any N
        return DEFAULT
    return DEFAULT * max(1, ROWS // (DEFAULT * max(N, 1)))


def serves(every: int | None, x: Tensor, h0: Tensor, c0: Tensor, layers, variant) -> bool:
    """Whether checkpoints are asked for and would replace a longer tape. Not under torch.func's
    transforms and forward-mode AD, which keep tapes of their own."""
    if every is None or x.shape[0] <= every or not torch.is_grad_enabled() or transforms.active():
        return False
    norms = [] if variant is None or variant.norms is None else variant.norms
    weights = (w for layer in [*layers, *norms] for direction in layer for w in direction)
    return any(a is not None and a.requires_grad for a in (x, h0, c0, *weights))


def run_layers(
    prefix: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    layers,
    variant: Variant | None,
    every: int,
    rest: Rest,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `run.run_layers`, with states saved every `every` steps instead of tapes. variant: one
    that changes the recurrence, or None.

    Layers of one direction without dropout between them are one op, chunk by chunk, which saves
    nothing between layers; otherwise each layer's output is saved.
    """
    D = len(layers[0])
    lengths, reset_mask, return_cells, between_layers, wide_products = rest
    first, variant = layers[0][0], variant or Variant()
    together = len(layers) if D == 1 and between_layers is None else 1
    seed, states = variant_layers.draw_seed(variant, x.device), []
    for k in range(0, len(layers), together):
        last = k + together == len(layers)
        part, here = slice(k * D, (k + together) * D), slice(k, k + together)
        h, c = h0[part], c0[part]
        # In the same order as without checkpoints, so that the masks are the same.
        masks = [variant_layers.draw_h_mask(variant, s) for s in h.split(D)]
        call = CheckpointedForward(
            x, h, c, flat(layers[here]), flat((variant.norms or [])[here]),
            None if masks[0] is None else torch.cat(masks), seed, lengths, reset_mask, prefix, D,
            biases_of(first), first.weight_hr is not None, *variant.zoneout, k, wide_products,
            return_cells and last, every,
        )  # fmt: skip
        results = CheckpointedResults(*op("checkpointed_forward")(*call))
        x, cells = results.output, results.cells
        states.append((results.h_n, results.c_n))
        if between_layers is not None and not last:
            x = between_layers(x)
    h, c = states[0] if len(states) == 1 else (torch.cat(s) for s in zip(*states, strict=True))
    return x, h, c, cells.flatten(2).to(x.dtype) if return_cells else None
