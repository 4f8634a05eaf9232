"""Rounding to the tensors' dtype, and of the factors of products."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """x in DTYPE, rounded to nearest even, as `to` rounds on a GPU. The interpreter's `to`
    truncates float32 to bfloat16, so there the bits are rounded first."""
    if INTERPRETED and tl.bfloat16 == DTYPE and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = ((bits >> 16) << 16).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def factor(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """x as the factor of a product: in the tensors' dtype, and with PRECISION "tf32" rounded to 10
    bits of mantissa. Tensor cores would truncate instead, which makes every product too small.
    Called once where x is computed, not at each use."""
    x = rounded(x, DTYPE)
    if PRECISION == "tf32":
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        # Without x == x the NaN of CUDA, 0x7FFFFFFF, would overflow to -0.
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x
