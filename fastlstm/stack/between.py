"""What may stand between the layers of a stack: dropout of one mask for all steps, and a list of
the layers' outputs."""

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def variational(y: Tensor, p: float, order: Tensor | None = None) -> Tensor:
    """Dropout of y (T, N, X) with one mask (N, X) for all steps (Gal & Ghahramani 2016; the locked
    dropout of AWD-LSTM, Merity et al. 2018): one call of torch's dropout on ones.

    Args:
        order: (N,), which row of the mask is for which row of y; None where each has its own.
    """
    mask = F.dropout(y.new_ones(y.shape[1:]), p)
    return y * (mask if order is None else mask.index_select(0, order))


def dropping(dropout: float, one_for_all_steps: bool) -> Callable[[Tensor], Tensor]:
    """The dropout of a layer's output (T, N, X), anew at each call."""
    return functools.partial(variational if one_for_all_steps else F.dropout, p=dropout)


def noises(between: Callable[[Tensor], Tensor], ones: Tensor, count: int) -> list[Tensor]:
    """What `count` calls of `between`, which scales or drops, multiply a layer's output with, for
    ones of the output's shape."""
    return [between(ones) for _ in range(count)]


def collecting(between: Callable[[Tensor], Tensor] | None, outputs: list[Tensor]):
    """`between`, which also appends what it is given to `outputs`."""

    def collect(y: Tensor) -> Tensor:
        outputs.append(y)
        return y if between is None else between(y)

    return collect
