"""Features of FastLSTM in combination with the Triton kernels, in Triton's interpreter.

`test_triton_interpreter.py` runs this file, as it does triton_interpreted.py.
"""

import pytest
import triton_interpreted_variants  # noqa: F401  (and those of the variants)
from feature_grid import COMBINATIONS, TOGETHER, Problem
from on_backends import served_here
from streams import check_stream
from triton_interpreted import pytestmark  # noqa: F401  (registers the kernels for the CPU)

# The interpreter takes seconds for one: as few as have every feature. What pairs do beyond the
# kernels is the same code as for the CUDA kernels, whose pairs test_features.py has.
CHOSEN, missing = [], set(TOGETHER)
while missing:
    CHOSEN.append(max(COMBINATIONS, key=lambda c: (len(missing & set(c)), -len(c))))
    missing -= set(CHOSEN[-1])


@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize(
    "features",
    [pytest.param(c, marks=pytest.mark.shows(*c), id="-".join(c)) for c in CHOSEN],
)
@pytest.mark.sweep(but=lambda features, **_: "double" not in features)
def test_combination(features, backend):
    with served_here("triton", "triton"):
        Problem(features, backend, rows=2).check()


@pytest.mark.shows("step")
@pytest.mark.parametrize("backend", ["triton"])
def test_a_stream_in_chunks(backend):
    with served_here("triton", "triton"):
        check_stream(backend, [2, 1], num_layers=1)
