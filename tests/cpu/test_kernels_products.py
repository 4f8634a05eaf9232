"""The CPU kernels' own products of large matrices.

test_kernels_isa.py runs this file on the other instruction sets too, AMX among them, or an
emulation of its tiles. The truth is float64, and what an error may be is measured on torch's
float32 product of the same numbers: as in op_cases, 2 r + (1 + sqrt(K)) u of the magnitudes, r
being its largest error.
"""

import itertools
import math

import pytest
import torch
from op_cases import Case, backward, by_id, check, draw, forward, tape_of, threads

from fastlstm.backends import native

if native.load():
    pytest.skip("the library is not built", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("poisoned_empty")

U = 2.0**-24
EXACT = (3, 3)
# Roundoff of a factor that is taken as so many bfloat16 numbers, and of a product of three of them.
OF_PARTS = {EXACT: 0.0, (2, 2): 2.0**-15, (2, 1): 2.0**-8 + 2.0**-17, (1, 1): 2.0**-7 + 2.0**-16}
TILES = native.cpu_isa().startswith("amx")
PAIRS = native.cpu_isa() == "avx512bf16"
if PAIRS:
    OF_PARTS = {EXACT: 0.0, (1, 1): OF_PARTS[1, 1]}
elif not TILES:
    OF_PARTS = {EXACT: 0.0}  # multiply-adds take every number as it is
# Tiles of 16 lines by 32 numbers, two by two, and chunks of 1024 numbers; six rows by strips of up
# to 64 columns, and chunks of up to 256.
SIZES = [(1, 1, 1), (16, 16, 32), (17, 33, 65), (49, 31, 33), (33, 20, 4096), (8, 150, 257)]


def own(left, right, parts=EXACT, addend=None, packed=False):
    beforehand = torch.ops.fastlstm.cpu_packed(right, parts[1]) if packed else None
    return torch.ops.fastlstm.cpu_product(left, right, addend, *parts, beforehand)


def factors(rows, columns, depth):
    return torch.randn(rows, depth), torch.randn(depth, columns)


def lying(t):
    """The same matrix as rows and as columns."""
    return t, t.t().contiguous().t()


def truth(left, right):
    """The product, and the sum of the magnitudes of its terms, in float64."""
    wide = left.double(), right.double()
    return wide[0] @ wide[1], wide[0].abs() @ wide[1].abs()


def within_the_budget(got, left, right, parts=EXACT, least=0.0, where=None):
    """Element by element, in units of the terms' magnitudes; `least`: an error that every term may
    have; `where`: the elements to look at."""
    exact, magnitude = truth(left, right)
    depth = left.shape[1]
    errors = [(t.double() - exact).abs() for t in (got, torch.mm(left, right))]
    if where is not None:
        magnitude, *errors = (t[where] for t in (magnitude, *errors))
    r = (errors[1] / magnitude.clamp_min(1e-300)).max()
    budget = 2 * r + (1 + math.sqrt(depth)) * U + OF_PARTS[parts]
    assert (errors[0] <= budget * magnitude + depth * least).all()


@pytest.mark.skipif(TILES, reason="tiles take both factors alike")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_bfloat16_factor_beside_a_float32_one(size):
    """Weights stored in bfloat16 are widened while they are packed: the same bits."""
    left, right = factors(*size)
    narrow = right.bfloat16()
    expected = own(left, narrow.float())
    for right, packed in itertools.product(lying(narrow), (False, True)):
        assert torch.equal(own(left, right, packed=packed), expected)


@pytest.mark.parametrize("parts", OF_PARTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_and_layout(size, parts):
    """All layouts, with the right factor packed beforehand or not, and any number of threads give
    the same bits."""
    left, right = factors(*size)
    expected = own(left, right, parts)
    within_the_budget(expected, left, right, parts)
    for a, b in itertools.product(lying(left), lying(right)):
        for packed in (False, True):
            assert torch.equal(own(a, b, parts, packed=packed), expected)
    for count in (2, 5):
        with threads(count):
            assert torch.equal(own(left, right, parts), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float64(size):
    """Whole numbers are summed without an error; of others, both sums have at most K roundings."""
    left, right = (t.double() for t in factors(*size))
    whole = (left * 8).round(), (right * 8).round()
    for a, b in itertools.product(lying(whole[0]), lying(whole[1])):
        for packed in (False, True):
            assert torch.equal(own(a, b, packed=packed), torch.mm(a, b))
    magnitude = left.abs() @ right.abs()
    error = (own(left, right) - torch.mm(left, right)).abs()
    assert (error <= 2 * size[2] * 2.0**-53 * magnitude).all()
    addend = torch.randn(size[0], size[1], dtype=torch.float64)
    if size[2] <= 256:  # one chunk
        assert torch.equal(own(left, right, addend=addend), addend + own(left, right))


if PAIRS:

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_bfloat16_as_it_lies(size):
        """The same numbers in bfloat16 and in float32 give the same bits, in all layouts."""
        left, right = (t.bfloat16() for t in factors(*size))
        expected = own(left.float(), right.float(), (1, 1))
        within_the_budget(expected, left.float(), right.float(), EXACT)
        for a, b in itertools.product(lying(left), lying(right)):
            for packed in (False, True):
                assert torch.equal(own(a, b, (1, 1), packed=packed), expected)
        assert torch.equal(own(left, right.float(), (1, 1)), expected)


def test_shared_out_over_threads():
    """Rows in shares of several blocks; few rows, so that columns are shared out too; and more than
    one block in any cache."""
    for size in [(300, 70, 700), (30, 400, 1500), (1100, 40, 300)]:
        left, right = factors(*size)
        expected = own(left, right)
        within_the_budget(expected, left, right)
        for count in (2, 3, 5):
            with threads(count):
                assert torch.equal(own(left, right, packed=count == 3), expected)


if TILES:

    def test_at_least_as_exact_as_float32():
        """The mean error over many sums, short and long, and where they cancel."""

        def mean_error(got, exact):
            return (got.double() - exact).square().mean().sqrt()

        for depth in (64, 512, 2048):
            left, right = factors(96, 64, depth)
            canceling = torch.cat([left, -left * (1 + 1e-4 * torch.randn_like(left))], dim=1)
            for a, b in [(left, right), (canceling, torch.cat([right, right]))]:
                exact, _ = truth(a, b)
                assert mean_error(own(a, b), exact) < mean_error(torch.mm(a, b), exact)


def test_adds_to_what_is_there():
    for size in [(40, 50, 64), (33, 20, 2100)]:
        (left, right), addend = factors(*size), torch.randn(size[0], size[1])
        got = own(left, right, addend=addend)
        one = torch.ones(size[0], 1)
        for row in (0, size[0] - 1):
            it = slice(row, row + 1)
            terms = torch.cat([left[it], one[it]], dim=1), torch.cat([right, addend[it]])
            within_the_budget(got[it], *terms)
    left, right = left[:, :64], right[:64]  # of one chunk
    assert torch.equal(own(left, right, addend=addend), addend + own(left, right))


def test_wide_ranges_of_exponents():
    """Numbers of a line over 12 decades, and lines of any size: each sum by its own terms."""
    left, right = factors(40, 50, 130)
    left *= 2.0 ** torch.randint(-20, 21, left.shape) * 2.0 ** torch.randint(-30, 31, (40, 1))
    right *= 2.0 ** torch.randint(-20, 21, right.shape) * 2.0 ** torch.randint(-30, 31, (1, 50))
    within_the_budget(own(left, right), left, right)


@pytest.mark.parametrize("exponent", [60, 100, 115, 126, 140])
def test_small_numbers_by_large_ones(exponent):
    """Products of order 1, of numbers down to denormal ones, which tiles would drop."""
    left, right = factors(20, 40, 70)
    left, right = left * 2.0**-exponent, right * 2.0 ** min(exponent, 125)
    within_the_budget(own(left, right), left, right)
    within_the_budget(own(right.t(), left.t()), right.t(), left.t())
    left[3:] *= 2.0 ** min(exponent, 125)  # some rows are small, the others not
    within_the_budget(own(left, right), left, right)


@pytest.mark.parametrize("exponent", [-45, -60, -70, -100])
def test_small_products(exponent):
    """Sums below 2^-90, and denormal ones, which float32 rounds to multiples of 2^-149."""
    left, right = (t * 2.0**exponent for t in factors(20, 40, 70))
    within_the_budget(own(left, right), left, right, least=2.0**-149)


@pytest.mark.parametrize("parts", [p for p in OF_PARTS if p != (2, 1)], ids=str)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3.4e38, -3.4e38])
def test_numbers_that_are_not_finite(value, parts):
    """Infinities and NaN reach what they reach in torch's float32, and no further; the largest
    numbers are numbers."""
    for side in (0, 1):
        given = list(factors(40, 50, 1100))
        given[side][3, 7] = value
        got = own(*given, parts)
        if PAIRS and parts == (1, 1):  # as one bfloat16 number, the largest are infinite
            given[side][3, 7] = torch.tensor(value).bfloat16().item()
        expected = torch.mm(*given)
        finite = expected.isfinite()
        assert torch.equal(got.isfinite(), finite)
        odd = ~finite
        assert torch.equal(got[odd].nan_to_num(1.0), expected[odd].nan_to_num(1.0))
        within_the_budget(got, *given, parts, where=finite)


def test_arguments_are_checked():
    left, right = factors(4, 5, 6)
    strided = torch.randn(8, 12)[::2, ::2]
    wrongs = [(left, right[1:]), (left.double(), right), (left[0], right), (strided, right)]
    for wrong in [*wrongs, (left.half(), right.half()), (left.bfloat16(), right.bfloat16())]:
        with pytest.raises(RuntimeError):
            own(*wrong)
    with pytest.raises(RuntimeError, match="1 and 3 parts, expected"):
        own(left, right, (1, 3))
    with pytest.raises(RuntimeError, match="packed"):
        torch.ops.fastlstm.cpu_product(left, right, None, 3, 3, torch.zeros(7, dtype=torch.uint8))


# Large enough that the input product, dx and the weights' gradients are the kernels' own.
LAYERS = [
    Case("layer", T=6, N=40, I=70, H=40, dtype=torch.float32),
    Case("layer", T=30, N=33, I=70, H=33, P=17, dtype=torch.float32, D=2, masks="random"),
    Case("layer", T=27, N=40, I=40, H=1024, P=16, dtype=torch.float32),  # several chunks of steps
    Case("layer", T=6, N=40, I=70, H=40, dtype=torch.bfloat16, wide=True, D=2, masks="lengths"),
    Case("layer", T=6, N=40, I=70, H=40, dtype=torch.float16, wide=True),
]


@pytest.mark.parametrize(**by_id(LAYERS))
def test_a_layer_within_the_budget(case):
    check(case)


def torch_products(function) -> int:
    # Else torch 2.10 warns that a second cycle, of which there is none, would clear the first.
    with torch.profiler.profile(acc_events=True) as profile:
        function()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::mm")


@pytest.mark.parametrize("case", LAYERS[:2], ids=str)
def test_which_products_are_torchs(case):
    """None; but with tiles a projection's gradient where it is small."""
    arguments, gradients = draw(case)
    tape = tape_of(forward(case, "lstm", arguments))
    assert torch_products(lambda: forward(case, "lstm", arguments)) == 0
    found = torch_products(lambda: backward(case, "lstm", arguments, gradients, tape))
    assert found == (case.D if TILES and case.P is not None else 0)
