"""Features of FastLSTM in combination, on every backend; the CUDA kernels run on the CPU.

Triton's are in features_interpreted.py.
"""

import itertools
import sys
from pathlib import Path

import feature_grid
import pytest
import torch
from feature_grid import COMBINATIONS, TOGETHER, Problem
from on_backends import served_here
from pairs import on_cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "simt"))
import family
import variant_family

pytestmark = pytest.mark.usefixtures("poisoned_empty")
no_cuda_reason = family.load() or variant_family.load()
no_cuda = pytest.mark.skipif(no_cuda_reason is not None, reason=str(no_cuda_reason))
BACKENDS = [on_cpu, "reference", pytest.param("cuda", marks=no_cuda)]


@pytest.fixture(autouse=True)
def cuda_on_cpu():
    with served_here("cuda", "simt"):
        yield


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "features",
    [pytest.param(c, marks=pytest.mark.shows(*c), id="-".join(c)) for c in COMBINATIONS],
)
def test_combination(features, backend):
    Problem(features, backend).check()


def test_every_pair_is_in_a_combination():
    assert all(map(feature_grid.can_go_together, COMBINATIONS))
    for a, b in itertools.permutations(TOGETHER, 2):
        assert any(a in c and b not in c for c in COMBINATIONS), f"{a} without {b}"
        together = any({a, b} <= set(c) for c in COMBINATIONS)
        assert together == feature_grid.can_go_together({a, b}), f"{a} with {b}"


@pytest.mark.parametrize("pair", [p for p in itertools.combinations(TOGETHER, 2) if feature_grid.can_go_together(p)])
@pytest.mark.parametrize("backend", [on_cpu])
def test_pair_alone(pair, backend):
    """What fails in a combination, by itself."""
    Problem(pair, backend).check()


MASKS = {
    "first": slice(0, 1),
    "last": slice(-1, None),
    "everywhere": slice(None),
    "nowhere": slice(0, 0),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", MASKS)
@pytest.mark.parametrize("more", [(), ("projection", "lengths")], ids=["plain", "P-lengths"])
def test_resets_at(where, more, backend):
    for directions in ((), ("bidirectional",)):
        problem = Problem(("hx", "cells", "reset_mask", *more, *directions), backend)
        problem.mask = torch.zeros_like(problem.mask)
        problem.mask[MASKS[where]] = True
        problem.check()
