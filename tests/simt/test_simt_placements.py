"""The workspace of a call fits the places of its weights, whatever calls came before: weights that
do not begin at multiples of 16 bytes are copied into it."""

import ctypes
import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import family

pytestmark = pytest.mark.skipif(family.load() is not None, reason=str(family.load()))

# Bytes from an aligned place: of weight_hh, of weight_hr.
PLACES = [(0, 0), (0, 4), (4, 0), (4, 4)]


@pytest.fixture(autouse=True)
def in_steps(monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "step")


def run(placed, chosen):
    """How many bytes beside the workspace were written to, and what the status says, of a call with
    the choice made for other places."""
    said = ctypes.create_string_buffer(500)
    ask = family._loaded[0].simt_run_placed
    ask.restype = ctypes.c_int64
    beside = ask(*map(ctypes.c_int64, (*placed, *chosen, len(said))), said)
    return beside, said.value.decode()


def test_a_workspace_is_the_calls_own_in_any_order():
    for order in itertools.permutations(PLACES):
        for placed in order:
            assert run(placed, placed) == (0, ""), order


@pytest.mark.parametrize(("placed", "chosen"), [((0, 4), (0, 0)), ((4, 0), (0, 4)), ((4, 4), (4, 0))])
def test_a_workspace_that_is_too_small_is_refused(placed, chosen):
    beside, said = run(placed, chosen)
    assert beside == 0
    assert "the recurrence for T=2, N=3, D=1, H=64, P=16: " in said
    assert "; the workspace has " in said
    assert run(chosen, placed) == (0, "")  # larger is no error
