"""The recurrence of one LSTM layer with zoneout, recurrent dropout and layer normalisation, in
plain, differentiable torch: the definition that every backend is tested against.

The equations of lstm.py with these additions, each of which is optional::

    a_t = W_hh (m * h_{t-1})                               m: recurrent dropout
    (i, f, g, o) = gates_x[t] + norm_hh * LN(a_t)          layer normalisation, else + a_t
    c~_t = f * c_{t-1} + i * g
    h~_t = o * tanh(norm_c * LN(c~_t) + bias_c)            layer normalisation, else o * tanh(c~_t)
    y~_t = W_hr h~_t, or h~_t without a projection
    c_t = z^c_t * c_{t-1} + (1 - z^c_t) * c~_t             zoneout, else c~_t
    h_t = z^h_t * h_{t-1} + (1 - z^h_t) * y~_t             zoneout, else y~_t

* Recurrent dropout (Gal & Ghahramani 2016, "A theoretically grounded application of dropout in
  recurrent neural networks"): m has one entry for each row and unit, 0 or 1 / (1 - p), the same at
  all steps and for all four gates. It is applied to h only as the product's factor, not to the
  output.
* Layer normalisation (Ba, Kiros & Hinton 2016, "Layer normalization", equations 20 to 22 of the
  supplement): LN(v) = (v - mean(v)) / sqrt(var(v) + 1e-5), over all 4H elements of a_t and the H of
  c~_t. gates_x contains the paper's LN(W_ih x_t) with its gain, and the biases of the gates.
* Zoneout (Krueger et al. 2017, "Zoneout: regularizing RNNs by randomly preserving hidden
  activations"): z^h and z^c are 0 or 1 for each step, row and unit, 1 with the probability given
  (zoneout_masks.py). Without a seed, in evaluation, they are the probabilities themselves. The
  output gate sees c~_t, the cell before zoneout. With a projection, z^h has its P units.

h_{t-1} and c_{t-1} are the states that enter the step: zeros after a reset. Low precision is as in
lstm.py; m * h_{t-1} is rounded to the tensors' dtype too, since it is a factor of a product.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from . import lstm as reference
from .zoneout_masks import zoneout_masks

EPSILON = 1e-5


class Options(NamedTuple):
    """Zoneout's probabilities, and the counters of its masks (zoneout_masks.py).

    stream: that of direction 0; direction d has stream + d. An odd stream is a reverse direction,
    so a call with D = 1 may be one.
    """

    zoneout_h: float
    zoneout_c: float
    stream: int
    first_step: int

    def is_reverse(self, d: int) -> bool:
        return (self.stream + d) % 2 == 1


def normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """LN(x) over the last dimension, and 1 / sqrt(var(x) + epsilon) (..., 1)."""
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    inverse = (variance + EPSILON).rsqrt()
    return (x - mean) * inverse, inverse


def zones(seed: Tensor | None, T: int, N: int, P: int, H: int, d: int, options: Options):
    """How much h and c keep of their old value at every step: a mask (T, N, P or H), a probability,
    or None for nothing."""
    probabilities = options.zoneout_h, options.zoneout_c
    if not any(probabilities):
        return None, None
    if seed is None:
        return tuple(p if p else None for p in probabilities)
    place = options.stream + d, options.first_step
    return zoneout_masks(seed, T, N, (P, H), probabilities, *place)


def _mixed(zone, old: Tensor, new: Tensor) -> Tensor:
    if zone is None:
        return new
    if isinstance(zone, float):
        return zone * old + (1 - zone) * new
    return torch.where(zone, old, new)


def _cell(
    h_in, c_in, gates_x, zone_h, zone_c, weight_hh, weight_hr, h_mask, norm_hh, norm_c, bias_c,
    *, dtype,
):  # fmt: skip
    """One step, as `lstm._cell`. dtype: that of the call's tensors."""
    factor = h_in if h_mask is None else (h_in * h_mask).to(dtype).to(h_in.dtype)
    a = reference.product(factor, weight_hh)
    if norm_hh is not None:
        a = norm_hh * normalise(a)[0]
    i, f, g, o = reference.activated(gates_x + a)
    candidate = f * c_in + i * g
    shown = candidate
    if norm_c is not None:
        shown = norm_c * normalise(candidate)[0]
        shown = shown if bias_c is None else shown + bias_c
    y = o * shown.tanh()
    if weight_hr is not None:
        y = reference.product(y, weight_hr)
    return _mixed(zone_h, h_in, y), _mixed(zone_c, c_in, candidate), (i, f, g, o)


def variant_forward(
    gates_x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    h_mask: Tensor | None,
    norm_hh: Tensor | None,
    norm_c: Tensor | None,
    bias_c: Tensor | None,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    seed: Tensor | None,
    *options,
    loop=reference.unrolled,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One layer, all directions and steps.

    Args:
        gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask: as for `reference.lstm_forward`.
        h_mask: (D, N, P), m in the equations, in the accumulation dtype; or None.
        norm_hh: (D, 4H); norm_c, bias_c: (D, H); in h0's dtype. All None without layer
        normalisation; bias_c may be None alone.
        seed: (1,) int64 for zoneout's masks, or None to use the probabilities instead of masks.
        options: `Options`. loop: as for `reference.lstm_forward`.

    Returns:
        As `reference.lstm_forward`, with h_t and c_t after zoneout.
    """
    options = Options(*options)
    (T, N), P, H = gates_x.shape[:2], h0.shape[-1], c0.shape[-1]
    return reference.forward(
        functools.partial(_cell, dtype=h0.dtype),
        gates_x,
        h0,
        c0,
        (weight_hh, weight_hr),
        (h_mask, norm_hh, norm_c, bias_c),
        lengths,
        reset_mask,
        loop,
        options.is_reverse,
        lambda d: zones(seed, T, N, P, H, d, options),
    )
