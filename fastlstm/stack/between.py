"""Functions between the layers of a stack: dropout, and collecting the layers' outputs.

On a GPU torch's dropout scales what it keeps in float32; on the CPU it multiplies by numbers of the
tensor's dtype, where 1 / (1 - p) is rounded, in bfloat16 by 0.16 % for p = 0.1. The functions here
do the same.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulation_dtype


def scales_wide(y: Tensor) -> bool:
    """Whether torch's dropout of y scales in the accumulation dtype."""
    return y.is_cuda


def scale_of(p: float) -> float:
    """Of what dropout of a share keeps."""
    return 1 / (1 - p or 1.0)


def _scaled(y: Tensor, mask: Tensor, scale: float | Tensor) -> Tensor:
    """y where the mask is True, scaled in the accumulation dtype and rounded once."""
    return (y * (mask.to(accumulation_dtype(y.dtype)) * scale)).to(y.dtype)


def variational(y: Tensor, p: float, order: Tensor | None = None) -> Tensor:
    """Dropout of y (T, N, X) with one mask (N, X) for all steps (Gal & Ghahramani 2016; the locked
    dropout of AWD-LSTM, Merity et al. 2018): one call of torch's dropout on ones.

    Args:
        order: (N,), the row of the mask for each row of y; None for the same order.
    """
    mask = F.dropout(y.new_ones(y.shape[1:]), p)
    if order is not None:
        mask = mask.index_select(0, order)
    return _scaled(y, mask != 0, scale_of(p)) if scales_wide(y) else y * mask


def dropping(dropout: float, one_for_all_steps: bool) -> Callable[[Tensor], Tensor]:
    """The dropout of a layer's output (T, N, X), with a new mask at each call."""
    return functools.partial(variational if one_for_all_steps else F.dropout, p=dropout)


def noises(between: Callable[[Tensor], Tensor], ones: Tensor, count: int, p: float) -> list[Tensor]:
    """The factors by which `count` calls of `between`, a dropout of probability p, multiply a
    layer's output. ones: ones of the output's shape. Where dropout scales in the accumulation
    dtype: bool masks, followed by the scale of all of them, a float64 scalar on the CPU."""
    drawn = [between(ones) for _ in range(count)]
    if not scales_wide(ones):
        return drawn
    return [noise != 0 for noise in drawn] + [torch.tensor(scale_of(p), dtype=torch.float64)]


def times(y: Tensor, noise: list[Tensor], k: int) -> Tensor:
    """The output y of layer k, or its gradient, times the k-th of `noises`."""
    if noise[k].dtype is torch.bool:
        return _scaled(y, noise[k], noise[-1])
    return y * noise[k]


def collecting(between: Callable[[Tensor], Tensor] | None, outputs: list[Tensor]):
    """`between`, which also appends its argument to `outputs`."""

    def collect(y: Tensor) -> Tensor:
        outputs.append(y)
        return y if between is None else between(y)

    return collect
