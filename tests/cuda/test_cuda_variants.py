"""The variants' CUDA kernels, run on the CPU by tests/simt, against the float64 reference: every
dtype and option, under adversarial orders of threads.

Every tensor that torch allocates is filled with NaN beforehand, and so is shared memory.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from op_cases import threads
from variant_cases import (
    CHUNKED,
    Case,
    check,
    check_chunks,
    check_frozen,
    draw,
    forward,
    sampled_cases,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "simt"))
import family
import variant_family

pytestmark = [
    pytest.mark.skipif(variant_family.load() is not None, reason=str(variant_family.load())),
    pytest.mark.usefixtures("poisoned_empty"),
]

FAMILY = "simt_variants"
KINDS = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
}


@pytest.fixture(autouse=True)
def precision():
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


def simulated(seed):
    return family.simulated(seed, variant_family.library())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(7))
def test_any_case(kind, seed):
    dtype, factors = KINDS[kind]
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    place = list(KINDS).index(kind)
    (case,) = sampled_cases(1, 100 * seed + place, 3e3, dtype=dtype)
    with simulated(seed):
        check(case, FAMILY, factors=factors)


WIDE = Case(
    "recurrence", T=2, N=3, H=130, D=2, dtype=torch.float32, masks="random", norm="bias", mask=True,
    zoneout=(0.25, 0.5),
)  # fmt: skip


@pytest.mark.parametrize("P", [None, 70])
def test_rows_of_several_warps(P):
    """A thread for several units, too: rows of up to 600 units."""
    with simulated(P or 1):
        check(replace(WIDE, P=P), FAMILY)
    large = Case("recurrence", T=2, N=2, H=600, P=5, dtype=torch.float32, norm="bias", mask=True)
    check(large, FAMILY)


@pytest.mark.parametrize("case", CHUNKED, ids=str)
def test_states_pass_from_chunk_to_chunk_unrounded(case):
    check_chunks(case, FAMILY)


def test_no_gradient_of_a_frozen_weight_is_formed(monkeypatch):
    check_frozen(FAMILY, monkeypatch)


def test_launches():
    case = Case("recurrence", T=3, N=2, H=8, dtype=torch.float32, norm="bias")
    arguments, _ = draw(case)
    for weight_hr, each in ((None, 2), (torch.randn(1, 8, 8), 4)):
        arguments[4] = weight_hr
        before = variant_family.launches()
        forward(case, FAMILY, arguments)
        assert variant_family.launches() - before == 1 + each * case.T


def test_masks_are_the_references_bits():
    case = Case("recurrence", T=1, N=5, H=67, dtype=torch.float32, D=2, zoneout=(0.3, 0.6))
    arguments, _ = draw(case)
    for place in (0, 3):
        arguments[place].zero_()
    for place in (1, 2):
        arguments[place].fill_(1)
    with threads(1):
        found, wanted = (forward(case, family, arguments) for family in (FAMILY, "reference"))
    for name in ("h_n", "c_n"):
        assert torch.equal(found[name] == 1, wanted[name] == 1)
