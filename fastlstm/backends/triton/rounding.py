"""Rounding: to the tensors' dtype, and of what goes into a product."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """x in DTYPE, rounded to nearest, ties to even: what `to` does on a GPU. The interpreter's
    `to` cuts the low bits off instead, so there half a unit is added to them before."""
    if INTERPRETED and tl.bfloat16 == DTYPE and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = ((bits >> 16) << 16).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def factor(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """x as a product takes it: in the tensors' dtype, and with PRECISION "tf32" with the 10 bits of
    mantissa that tensor cores look at. They would cut the others off, which makes every product too
    small; rounded here to nearest, and once, where a number is made and not where it is used."""
    x = rounded(x, DTYPE)
    if PRECISION == "tf32":
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        # The largest of the NaNs, which CUDA gives, would overflow to -0.
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x
