"""csrc/cuda's float32 products, alone: on tensor cores by parts, and without them for few rows.

Held to float32's own accuracy also where the tensor cores cut sums off, as GPUs do, and to what
float32.h says of infinities and of numbers too large or too small.
"""

from functools import cache

import pytest
import torch
from simt import build, run
from simt.small_kernels import needs_compiler

pytestmark = needs_compiler

COLUMNS, ROWS = 32, 8
UNIT = 2.0**-24
CSRC = build.ROOT / "csrc"
SOURCE = build.HERE / "kernels" / "products.cu"
HOWS = ("apart", "tile", "plain")
# More shared memory than a block of a GPU has: here one warp has all of K.
LARGE = {"device.max_shared_opt_in": 500 << 10, "device.max_shared_multiprocessor": 510 << 10}


@cache
def runner():
    return build.executable("products", [SOURCE])


def multiply(how, weights, state, extra_bits=-1, program=None):
    """weights (32, K) times state (8, K) transposed; a tile has 16 of the weights' columns."""
    sums = torch.full((COLUMNS, ROWS), torch.nan)
    values = {"weights": weights, "state": state, "sums": sums, "K": weights.shape[1]}
    values |= LARGE | {"device.tensor_core_extra_bits": extra_bits}
    outcome = run.run(program or runner(), how, values)
    assert outcome.code == "ok", outcome.report
    return outcome.arrays["sums"][: 16 if how == "tile" else COLUMNS]


def draw(K, signs=True):
    weights, state = (torch.rand(COLUMNS, K) * 2 - 1) * K**-0.5, torch.tanh(torch.randn(ROWS, K))
    return (weights, state) if signs else (weights.abs(), state.abs())


def share_of_budget(got, weights, state):
    """The largest error, as a share of what op_cases.py allows a float32 product: twice torch's own
    error, a rounding, and a random walk of K of them."""
    exact, K = weights.double() @ state.double().T, weights.shape[1]
    own = (weights @ state.T - exact).abs().max()
    budget = 2 * own + (1 + K**0.5) * UNIT * exact.abs().max()
    return ((got.double() - exact[: len(got)]).abs().max() / budget).item()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("K", [128, 512, 2048])
def test_float32s_own_accuracy(how, K):
    """Terms of one sign are the worst for sums that are cut off."""
    for signs in (True, False):
        weights, state = draw(K, signs)
        for extra_bits in (-1,) if how == "plain" else (-1, 2, 0):
            assert share_of_budget(multiply(how, weights, state, extra_bits), weights, state) < 1


def test_long_sums_on_tensor_cores_would_not_do():
    weights, state = draw(512, signs=False)
    assert share_of_budget(multiply("together", weights, state, 1), weights, state) > 4


@pytest.mark.parametrize("how", HOWS)
def test_every_number_is_right_or_not_finite(how):
    """One product a sum: of floats of any exponent, and what these make an infinity of."""
    K = 128
    bits = torch.randint(-(1 << 31), 1 << 31, (COLUMNS + ROWS, K)).to(torch.int32)
    weights, state = bits.view(torch.float32).split([COLUMNS, ROWS])
    largest = torch.finfo(torch.float32).max
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, largest, -largest, 1e-45, 1e-40, 0.0])
    weights = torch.eye(COLUMNS, K) * torch.where(weights.isfinite(), weights, 1.0)
    weights[:8, :8] = torch.diag(special)
    state = torch.where(state.isfinite(), state, 1.0)
    state[:, 3:7] = torch.tensor([0.5, 1.0, 2.0**-20, 1.25])[torch.randint(4, (ROWS, 4))]
    exact = weights.double() @ state.double().T
    for extra_bits in (-1,) if how == "plain" else (-1, 1):
        got = multiply(how, weights, state, extra_bits).double()
        wanted = exact[: len(got)]
        factors = state.double().T[: len(got)].abs() + weights.double().diagonal()[: len(got), None].abs()
        # Parts below bfloat16's smallest number are lost, and what is below float32's.
        allowed = wanted.abs() * 2.0**-21 + factors * 2.0**-133 + 2.0**-149
        close = (got - wanted).abs() <= allowed
        overflow = (wanted.abs() >= largest * (1 - 2.0**-21)) & (got.abs() >= largest * (1 - 2.0**-20))
        finite = wanted.isfinite()
        assert (close | overflow)[finite].all()
        assert not got[~finite & ~overflow].isfinite().any()


# Mistakes: a file, text of it, what takes its place, and which product shows it.
MUTANTS = {
    "a product less": (
        "product/stationary.h", "product < Policy::kProducts",
        "product < Policy::kProducts - 1", "apart",
    ),
    "the smallest parts lost": (
        "product/float32.h", "kOfWeights[kProducts] = {2, 1",
        "kOfWeights[kProducts] = {1, 1", "apart",
    ),
    "another order of K": (
        "product/float32.h", "const int k = word / 2 * 8 + q;",
        "const int k = word / 2 * 8 + (q ^ 1);", "apart",
    ),
    "parts of a tile that do not belong together": (
        "product/float32.h", "add(0, 1, 1, 0);", "add(0, 1, 0, 1);", "tile",
    ),
    "lanes whose sums are missing": (
        "product/plain_stationary.h", "mask < Shape::kLanesK", "mask < Shape::kLanesK / 2", "plain",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_noticed(name):
    file, text, replacement, how = MUTANTS[name]
    to = build.BUILD / "mutants" / build.digest(*MUTANTS[name])
    for path in [*CSRC.glob("cuda/**/*.h"), *CSRC.glob("core/*.h")]:
        copied = to / path.relative_to(CSRC)
        source = path.read_text()
        if copied == to / "cuda" / file:
            assert source.count(text) == 1, f"{file} has {source.count(text)} times: {text}"
            source = source.replace(text, replacement)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(source)
    flags = ["-O0", "-DONLY_128", f"-I{to}"]
    program = build.executable(f"products-{to.name}", [SOURCE], flags)
    weights, state = draw(128)
    assert share_of_budget(multiply(how, weights, state, program=program), weights, state) > 1
