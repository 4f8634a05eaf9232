"""Sizes and numbers that are hard for products on AMX tiles, 16 rows by 16 columns by 32 terms of
bfloat16 parts of the numbers, and for those of pairs of bfloat16 numbers.

test_kernels_isa.py runs this file on an emulation of the tiles, where the kernels' own source
is what runs, and on AVX512-BF16; on any other instruction set it holds too.
"""

import itertools
import math

import pytest
import torch
from op_cases import (
    Case,
    backward,
    by_id,
    check,
    draw,
    forward,
    rounds_gradients,
    tape_of,
    threads,
)
from pairs import needs_library

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_empty")]

# One tile of rows, two, both not whole; units and terms around 16, 32 and 64, in panels of one to
# four vectors backward. And two rows with an odd number of pairs of terms.
SIZES = [
    (2, 34, 33),
    (7, 16, None),
    (16, 31, None),
    (17, 33, 18),
    (32, 64, 63),
    (33, 17, 16),
    (97, 65, None),
]
HARD = [torch.float32, torch.bfloat16, torch.float16]
CASES = [
    Case("recurrence", T=3, N=N, H=H, P=P, dtype=dtype, wide=wide, D=1 + wide, masks=masks)
    for k, ((N, H, P), dtype) in enumerate(itertools.product(SIZES, HARD))
    for wide, masks in [(k % 2 == 0, ("none", "random", "lengths", "resets")[k % 4])]
]
LAYERS = [
    Case("layer", T=5, N=40, I=9, H=49, dtype=dtype, wide=wide, D=2, masks="random")
    for dtype, wide in [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False)]
]


@pytest.mark.parametrize(**by_id(CASES + LAYERS))
def test_within_the_budget(case):
    check(case)


@pytest.mark.parametrize("count", [2, 5])
def test_shared_out_over_threads(count):
    with threads(count):
        for H, P in [(130, None), (200, 67)]:
            check(Case("recurrence", T=3, N=21, H=H, P=P, dtype=torch.float32, masks="random"))


def one_step(weight, h0):
    """A case of one step and its problem, where gates are weight_hh (4H, P) h0 (N, P) alone."""
    N, P = h0.shape
    H = weight.shape[0] // 4
    case = Case("recurrence", T=1, N=N, H=H, P=None if P == H else P, dtype=torch.float32)
    arguments, gradients = draw(case)
    arguments[0] = torch.zeros(1, N, 1, 4 * H)
    arguments[1], arguments[3] = h0[None], weight[None]
    return case, (arguments, gradients)


@pytest.mark.parametrize("exponent", [-100, -60, -20, 0, 20, 60, 100])
def test_any_magnitudes(exponent):
    """Numbers near both ends of float32's range, whose products are of order 1."""
    for dtype in HARD[:2]:
        weight = torch.randn(160, 40) * 2.0**exponent / math.sqrt(40)
        case, problem = one_step(weight.to(dtype).float(), torch.randn(20, 40) * 2.0**-exponent)
        check(case, problem=problem)


@pytest.mark.parametrize("exponent", [-70, -95, -110, -118])
def test_small_sums(exponent):
    """Below 2^-90 sums are made again: their parts would be denormal numbers, which tiles drop."""
    half = 2.0 ** (exponent // 2)
    case, (arguments, _) = one_step(torch.randn(160, 40) * half, torch.randn(20, 40) * half)
    arguments[2] = torch.zeros_like(arguments[2])  # so that c and h are of the size of the sums
    got = forward(case, "lstm", arguments)
    expected = forward(case, "reference", [a if a is None else a.double() for a in arguments])
    for name in ("cells", "output"):
        error = (got[name].double() - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3.4e38, -3.4e38])
def test_numbers_that_are_not_finite(value):
    """An infinity or NaN, or the largest number, in a weight or in a state, and of gradients, which
    have no gates that hold them back, infinity and NaN: as far as they reach in torch's float32,
    and no further."""

    def same(got, expected):
        torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-5)

    case = Case("recurrence", T=2, N=19, H=37, dtype=torch.float32)
    for weight in (True, False):
        arguments, _ = draw(case)
        if weight:
            arguments[3][0, 40, 5] = value
        else:
            arguments[1][0, 3, 7] = value
        got, expected = (forward(case, family, arguments) for family in ("lstm", "reference"))
        same(got, expected)
    if math.isfinite(value):
        return
    arguments, gradients = draw(case)
    gradients[0][1, 4, 9] = value
    tape = tape_of(forward(case, "reference", arguments))
    got, expected = (backward(case, family, arguments, gradients, tape) for family in ("lstm", "reference"))
    same(got, expected)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_16_bits_that_are_not_finite(value):
    """The same in bfloat16 and float16, of one step: which numbers they reach."""
    for dtype in HARD[1:]:
        case = Case("recurrence", T=1, N=19, H=37, dtype=dtype)
        (arguments, gradients), clean = draw(case), draw(case)
        arguments[3][0, 40, 5] = arguments[1][0, 3, 7] = gradients[0][0, 4, 9] = value
        tape = tape_of(forward(case, "reference", clean[0]))
        got, expected = (
            forward(case, family, arguments) | backward(case, family, clean[0], gradients, tape)
            for family in ("lstm", "reference")
        )
        for name, wanted in expected.items():
            assert torch.equal(got[name].isnan(), wanted.isnan()), name
            assert torch.equal(got[name].isinf(), wanted.isinf()), name


def test_digits_of_gradients():
    """What a step's gradients become in the step before, where those of the gates are float32: from
    the same tape, errors are those of the product alone. 16 digits, two bfloat16 numbers'; or where
    one stands for a gradient, 8: the roundings of a sum's terms come to less than one of it."""
    case = Case("recurrence", T=2, N=20, H=40, dtype=torch.bfloat16, wide=True)
    arguments, gradients = draw(case)
    tape = tape_of(forward(case, "reference", arguments))
    got = backward(case, "lstm", arguments, gradients, tape)["dgates_x"][0]
    wide = [[t if t is None else t.double() for t in part] for part in (arguments, gradients, tape)]
    exact = backward(case, "reference", *wide)["dgates_x"][0]
    digits = 2.0**-8 if rounds_gradients(case) else 2.0**-15
    assert (got - exact).abs().max() < digits * exact.abs().max()
