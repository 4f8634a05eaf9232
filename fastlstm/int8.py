"""8-bit weights: quantisation of matrices, and their layout in memory.

A matrix is quantised row by row (a gate's unit, or with a projection an output, is a row),
symmetrically: scale s = max|row| / 127 in float32, q = round(w / s) in -127..127, ties to even. So
|w - s q| <= s / 2 (1 + 2^-22), and one large entry reduces the precision of its own row only. A row
of zeros has the scale 0. Where max|row| / 127 is not a normal number it is rounded up, so that q
still fits.

Packed, a matrix (G*H, K) of G gates (4, or 1 for a projection's) is int8 of shape (ceil(H/16),
ceil(K/4), G, 16, 4), padded with zeros: a contiguous stream for 16 units with all of their gates,
in which each [16][4] is one vector operand of an instruction for dot products of 4 bytes. It is the
same for every instruction set, in modules and in pickles.

The computation with them is in stack/int8.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_states, check_tensor
from .weights import LSTMWeights

LEVELS = 127
UNITS, TERMS = 16, 4  # of a block of the packed form
# The least normal number of float32, and the least of all.
_LEAST_NORMAL, _LEAST = 2.0**-126, 2.0**-149


class Int8Weights(NamedTuple):
    """The weights of one layer and direction in int8, gate order i, f, g, o, from `quantise`.
    `fastlstm.functional.lstm` accepts them instead of `LSTMWeights`.

    packed_ih, packed_hh, packed_hr: int8, see the top of this file. scale_ih, scale_hh (4H,),
    scale_hr (P,): float32. bias (4H,): float32, the sum of both biases, or None. packed_hr and
    scale_hr: None without a projection. inputs: I, which cannot be told from the packed form.
    """

    packed_ih: Tensor
    scale_ih: Tensor
    packed_hh: Tensor
    scale_hh: Tensor
    bias: Tensor | None
    packed_hr: Tensor | None
    scale_hr: Tensor | None
    inputs: int

    @property
    def hidden(self) -> int:
        """H."""
        return self.scale_hh.shape[0] // 4

    @property
    def outputs(self) -> int:
        """P: H, or the projection's size."""
        return self.hidden if self.scale_hr is None else self.scale_hr.shape[0]


def check_finite(weight: Tensor, name: str) -> None:
    """Raises ValueError if a matrix has NaN or infinity; the text has `name`."""
    if weight.is_meta or bool(weight.isfinite().all()):
        return
    row = int((~weight.isfinite()).any(1).nonzero()[0])
    raise ValueError(
        f"{name}: row {row} has NaN or infinity, which int8 cannot hold; look at how these "
        "weights were made, or keep them in float32 (weight_dtype=None)"
    )


def quantise_rows(weight: Tensor, name: str = "weight") -> tuple[Tensor, Tensor]:
    """A matrix as q (int8, of its shape) and scales (float32, one for each row).

    Raises:
        ValueError: an entry is NaN or infinite; the text has `name`.
    """
    check_finite(weight, name)
    wide = weight.detach().double()
    peak = wide.abs().amax(1) if weight.shape[1] else wide.new_zeros(weight.shape[0])
    scale = peak / LEVELS
    scale = torch.where(scale < _LEAST_NORMAL, (scale / _LEAST).ceil() * _LEAST, scale).float()
    # By the scale rounded to float32, which q will be multiplied by.
    safe = torch.where(scale == 0, 1.0, scale.double())
    q = (wide / safe[:, None]).round().clamp(-LEVELS, LEVELS)
    return q.to(torch.int8), scale


def dequantise_rows(q: Tensor, scale: Tensor) -> Tensor:
    """The float32 matrix of q and its scales."""
    return q.float() * scale.float()[:, None]


def pack(q: Tensor, gates: int = 4) -> Tensor:
    """int8 (gates*H, K) -> (ceil(H/16), ceil(K/4), gates, 16, 4)."""
    rows, K = q.shape
    H = rows // gates
    blocks, quads = -(-H // UNITS), -(-K // TERMS)
    q = F.pad(q.reshape(gates, H, K), (0, quads * TERMS - K, 0, blocks * UNITS - H))
    q = q.view(gates, blocks, UNITS, quads, TERMS)
    return q.permute(1, 3, 0, 2, 4).contiguous()


def unpack(packed: Tensor, H: int, K: int) -> Tensor:
    """Undoes `pack`: int8 (gates*H, K)."""
    blocks, quads, gates, units, terms = packed.shape
    q = packed.permute(2, 0, 3, 1, 4).reshape(gates, blocks * units, quads * terms)
    return q[:, :H, :K].reshape(gates * H, K)


def packed_shape(rows: int, K: int, gates: int = 4) -> tuple[int, ...]:
    """The shape of the packed form of a matrix (rows, K)."""
    return (-(-(rows // gates) // UNITS), -(-K // TERMS), gates, UNITS, TERMS)


def summed_bias(bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor | None:
    """The sum of both biases in float32; None if both are None."""
    given = [b.detach().float() for b in (bias_ih, bias_hh) if b is not None]
    return (given[0] + given[1] if len(given) == 2 else given[0].clone()) if given else None


def quantise(weights: LSTMWeights, name: str = "") -> Int8Weights:
    """One layer's and direction's weights in int8, for `fastlstm.functional.lstm`.

    Args:
        weights: an `LSTMWeights`, or a tuple in its order, of any floating-point dtype.
        name: a prefix for the names of the matrices in errors.

    Raises:
        ValueError: a matrix has NaN or infinity; the text names it.
    """
    weights = LSTMWeights(*weights)
    q_ih, scale_ih = quantise_rows(weights.weight_ih, f"{name}weight_ih")
    q_hh, scale_hh = quantise_rows(weights.weight_hh, f"{name}weight_hh")
    packed_hr = scale_hr = None
    if weights.weight_hr is not None:
        q_hr, scale_hr = quantise_rows(weights.weight_hr, f"{name}weight_hr")
        packed_hr = pack(q_hr, 1)
    bias = summed_bias(weights.bias_ih, weights.bias_hh)
    inputs = weights.weight_ih.shape[1]
    return Int8Weights(pack(q_ih), scale_ih, pack(q_hh), scale_hh, bias, packed_hr, scale_hr, inputs)


def dequantise(weights: Int8Weights) -> LSTMWeights:
    """The weights in float32; bias_ih has the sum of both biases, bias_hh is 0."""
    H, P = weights.hidden, weights.outputs
    ih = dequantise_rows(unpack(weights.packed_ih, H, weights.inputs), weights.scale_ih)
    hh = dequantise_rows(unpack(weights.packed_hh, H, P), weights.scale_hh)
    bias = weights.bias
    zeros = None if bias is None else torch.zeros_like(bias)
    hr = None
    if weights.packed_hr is not None:
        hr = dequantise_rows(unpack(weights.packed_hr, P, H), weights.scale_hr)
    return LSTMWeights(ih, hh, bias, zeros, hr)


def flat(layers) -> list[Tensor]:
    """The tensors of `Int8Weights`, layer by layer, as `fastlstm::int8_stack` takes them."""
    return [t for layer in layers for w in layer for t in w[:7] if t is not None]


def sizes_of(weights: LSTMWeights | Int8Weights) -> tuple[int, int]:
    """P and H."""
    if isinstance(weights, Int8Weights):
        return weights.outputs, weights.hidden
    H4, P = weights.weight_hh.shape
    return P, H4 // 4


def check_int8_stack(input: Tensor, weights, hx, D: int, batch_first: bool) -> None:
    """`checks.check_stack` for `Int8Weights`."""
    if not isinstance(input, Tensor) or input.dim() != 3 or input.dtype != torch.float32:
        got = f"{input.dtype} of {tuple(input.shape)}" if isinstance(input, Tensor) else "no tensor"
        raise ValueError(f"input: got {got}, expected float32 of 3 dimensions beside int8 weights")
    if len(weights) % D:
        raise ValueError(f"weights: got {len(weights)} entries, expected a multiple of {D}")
    first = weights[0]
    for k, w in enumerate(weights):
        if not isinstance(w, Int8Weights):
            raise ValueError(
                f"weights[{k}]: got {type(w).__name__}, expected Int8Weights in every entry of weights or in none"
            )
        P, H = sizes_of(first)
        expected = input.shape[2] if k < D else D * P
        if w.inputs != expected:
            raise ValueError(f"weights[{k}].inputs: got {w.inputs}, expected {expected}")
        shapes = {
            "packed_ih": packed_shape(4 * H, expected),
            "scale_ih": (4 * H,),
            "packed_hh": packed_shape(4 * H, P),
            "scale_hh": (4 * H,),
            "bias": (4 * H,),
            "packed_hr": packed_shape(P, H, 1),
            "scale_hr": (P,),
        }
        for name, shape in shapes.items():
            value = getattr(w, name)
            if (value is None) != (getattr(first, name) is None):
                raise ValueError(f"weights[{k}].{name}: expected in every entry of weights or in none")
            if value is not None:
                dtype = torch.int8 if name.startswith("packed") else torch.float32
                check_tensor(f"weights[{k}].{name}", value, shape, input.new_empty(0, dtype=dtype))
    if hx is not None:
        P, H = sizes_of(first)
        N = input.shape[0 if batch_first else 1]
        check_states(hx, (len(weights), N, P), (len(weights), N, H), input)
