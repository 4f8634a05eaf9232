"""The gradients of a layer's weights from those of its gates: large products over all steps and
rows."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import lstm as reference


class Wanted(NamedTuple):
    """Which of a layer's weights want gradients; `bias` stands for both biases."""

    ih: bool = False
    hh: bool = False
    bias: bool = False
    hr: bool = False


class WeightGradients(NamedTuple):
    """(D, 4H, I), (D, 4H, P), (D, 4H), (D, P, H), with samples (samples, D, ...); None where not
    wanted."""

    ih: Tensor | None = None
    hh: Tensor | None = None
    bias: Tensor | None = None
    hr: Tensor | None = None


def product_of_steps(dy: Tensor, x: Tensor, samples: int | None = None) -> Tensor:
    """The sum over t and n of dy[t, n, :] x[t, n, :]^T: (T, N, A), (T, N, B) -> (A, B), or with
    samples, each N // samples of the rows, (samples, A, B). In dy's dtype."""
    x = x.to(dy.dtype)
    if samples is None:
        # reshape, since flatten has no batching rule here: see layer.plain_backward
        rows = dy.shape[0] * dy.shape[1]
        return dy.reshape(rows, dy.shape[2]).t() @ x.reshape(rows, x.shape[2])
    dy, x = (v.unflatten(1, (samples, v.shape[1] // samples)).movedim(1, 0).flatten(1, 2) for v in (dy, x))
    return dy.mT @ x


def _recurrent(dgates, output, first, lengths, reset_mask, reverse: bool, mask, samples):
    """dW_hh of one direction: the product of dgates (T, N, 4H) with the h that entered each step,
    from output (T, N, P) and the first h (N, P)."""
    T = dgates.shape[0]
    if T and lengths is None and reset_mask is None and mask is None and samples is None:
        # The states that enter are the output of the step before, of which views can be multiplied.
        start, rest = (T - 1, slice(0, T - 1)) if reverse else (0, slice(1, T))
        before = slice(1, T) if reverse else slice(0, T - 1)
        grad = dgates[start].t() @ first.to(dgates.dtype)
        return grad if T == 1 else grad + product_of_steps(dgates[rest], output[before])
    entering = reference.entering_states(output, first, reset_mask, lengths, reverse)
    if mask is not None:
        entering = (entering * mask).to(first.dtype)
    return product_of_steps(dgates, entering, samples)


def weight_gradients(
    dgates: Tensor,
    dhidden: Tensor,
    x: Tensor | None,
    output: Tensor,
    h0: Tensor,
    shown: Tensor,
    gates: Tensor,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    wanted: Wanted,
    *,
    dproducts: Tensor | None = None,
    h_mask: Tensor | None = None,
    reverse: Sequence[bool] = (False, True),
    samples: int | None = None,
) -> WeightGradients:
    """The gradients of a layer's weights, in h0's dtype.

    Args:
        dgates: (T, N, D, 4H), gradients of the gates before activation. dhidden: with a projection
        (T, N, D, P), those of its output. x: (T, N, I), used for weight_ih only. output: (T, N,
        D*P). h0: (D, N, P). gates: (T, N, D, 4H) of the tape. lengths: (N,); reset_mask: (T, N).
        shown: (T, N, D, H), the argument of the cell's tanh: the cells of a plain LSTM.
        wanted: `hr` is ignored without a projection.
        dproducts: (T, N, D, 4H), gradients of the product with W_hh, where they are not `dgates`.
        h_mask: (D, N, P), recurrent dropout's mask of h. reverse: which directions run backwards.
        samples: number of samples whose gradients stay apart, each of N // samples rows; None for
        one sum over all rows.
    """
    T, _, D, H4 = gates.shape
    P, dtype = h0.shape[-1], h0.dtype
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    dproducts = dgates if dproducts is None else dproducts
    found = {}
    if wanted.ih:
        # At steps that do not exist dgates is 0, but x may be NaN, and 0 * NaN is NaN. Copies x if
        # there are lengths.
        x = reference.existing(x, lengths)
        found["ih"] = [product_of_steps(dgates[:, :, d], x, samples) for d in range(D)]
    if wanted.hh:
        found["hh"] = [
            _recurrent(
                dproducts[:, :, d], output[..., d * P : (d + 1) * P], h0[d], lengths, reset_mask,
                reverse[d], None if h_mask is None else h_mask[d], samples,
            )
            for d in range(D)
        ]  # fmt: skip
    if wanted.hr and dhidden.dim() == 4:
        hidden = gates[..., 3 * H4 // 4 :].to(shown.dtype) * shown.tanh()
        found["hr"] = [product_of_steps(dhidden[:, :, d], hidden[:, :, d], samples) for d in range(D)]
    of_direction = 0 if samples is None else 1
    stacked = {k: torch.stack(v, dim=of_direction).to(dtype) for k, v in found.items()}
    if wanted.bias:
        if samples is None:
            sums = dgates.sum((0, 1))
        else:
            sums = dgates.unflatten(1, (samples, dgates.shape[1] // samples)).sum((0, 2))
        stacked["bias"] = sums.to(dtype)
    return WeightGradients(**stacked)
