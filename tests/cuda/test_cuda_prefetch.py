"""What the kernels on the chip ask memory for ahead of time: what they will load, and nothing else.

(An address beside an array is what test_simt_recurrence.py finds.)
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cuda_kinds import family
from op_cases import Case, backward, draw, forward, tape_of

pytestmark = pytest.mark.skipif(family.load() is not None, reason=str(family.load()))

SOURCE = Path(__file__).parents[2] / "csrc" / "cuda" / "cluster" / "forward_cell.h"
AHEAD = int(re.search(r"kStepsAhead = (\d+);", SOURCE.read_text())[1])
CASE = Case("recurrence", T=AHEAD + 4, N=5, H=21, D=2, dtype=torch.bfloat16, wide=True)
LENGTHS = (CASE.T, 0, 2, AHEAD + 1, CASE.T - 1)


def steps_of(row: int, direction: int, order: int) -> list[int]:
    """The steps of a row that are asked for: all but the first ones that a kernel comes to, which
    goes through the call's steps upwards (order 1) or downwards."""
    steps = list(range(CASE.T))[:: order * (-1 if direction else 1)]
    return [t for t in steps[AHEAD:] if t < LENGTHS[row]]


def addresses(array: torch.Tensor, order: int) -> set[int]:
    """Of all numbers of array (T, N, D, width) in those steps."""
    found = set()
    for row in range(CASE.N):
        for d in range(CASE.D):
            for t in steps_of(row, d, order):
                place = array[t, row, d]
                step = place.stride(0) * place.element_size()
                found |= {place.data_ptr() + k * step for k in range(place.numel())}
    return found


@pytest.mark.parametrize(("kernels", "P"), [("cluster", None), ("grid", None), ("cluster", 9)])
@pytest.mark.parametrize("seed", [0, 3])
def test_what_will_be_loaded_is_asked_for(kernels, P, seed, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    case = replace(CASE, P=P)
    arguments, (doutput, dh_n, dc_n, dcells) = draw(case)
    arguments[5] = torch.tensor(LENGTHS)
    apart = torch.zeros(2 * case.T, *arguments[0].shape[1:])
    arguments[0] = apart[::2].copy_(arguments[0])
    with family.simulated(seed), family.prefetched() as asked:
        results = forward(case, "simt", arguments)
    assert set(asked) == addresses(arguments[0], 1)
    tape = _, cells, gates = tape_of(results)
    with family.simulated(seed), family.prefetched() as asked:
        backward(case, "simt", arguments, [doutput, dh_n, dc_n, dcells], tape)
    read = [gates, cells, dcells, doutput.view(case.T, case.N, case.D, -1)]
    assert set(asked) == set().union(*(addresses(array, -1) for array in read))
    with family.simulated(seed), family.prefetched() as asked:
        backward(case, "simt", arguments, [None] * 4, tape)
    assert set(asked) == addresses(gates, -1) | addresses(cells, -1)
