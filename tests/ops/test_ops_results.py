"""The compiled recurrence and layer against the reference, within the error budget."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_cases import DTYPES, MASKS, Case, by_id, check, sampled_cases
from pairs import needs_library

pytestmark = needs_library

# More rows than go through the steps together, in even and uneven numbers.
MANY_ROWS = [
    Case("recurrence", T=5, N=100, H=17, dtype=torch.float32, masks="random", D=2),
    Case("recurrence", T=3, N=200, H=33, dtype=torch.float64, P=7),
    Case("layer", T=4, N=97, H=16, dtype=torch.bfloat16, masks="random"),
    Case("layer", T=6, N=200, H=5, dtype=torch.float32, D=2, P=3, masks="lengths"),
]

# More gates than a layer makes, or takes into its sums, at a time: several chunks of steps, of
# which the last is shorter.
MANY_STRETCHES = [
    Case("layer", T=450, N=40, I=5, H=64, dtype=torch.float64),
    Case("layer", T=201, N=61, I=3, H=48, P=9, D=2, dtype=torch.float64, masks="random"),
    Case("layer", T=7, N=130, I=3, H=130, D=2, dtype=torch.float32),
    Case("layer", T=5, N=300, I=2, H=256, dtype=torch.bfloat16, wide=True, masks="resets"),
]

# Weights that are too large for a core's cache: with few rows, streamed in their own type.
LARGE_WEIGHTS = [
    Case("recurrence", T=3, N=N, H=H, D=D, dtype=dtype, wide=wide)
    for N, H, D, dtype, wide in [
        (1, 656, 1, torch.bfloat16, False),
        (2, 657, 1, torch.bfloat16, True),
        (1, 660, 2, torch.float16, True),
        (2, 650, 1, torch.float16, False),
        (3, 650, 1, torch.float16, False),
        (1, 600, 1, torch.float32, False),
        # Several blocks of rows, which ask for the next panel's weights; an uneven number of terms.
        (9, 331, 1, torch.float32, False),
        (7, 461, 1, torch.bfloat16, True),
    ]
]


@pytest.mark.parametrize(**by_id(sampled_cases("recurrence", 40, seed=0)))
def test_recurrence(case):
    check(case)


@pytest.mark.parametrize(**by_id(sampled_cases("layer", 40, seed=1)))
def test_layer(case):
    check(case)


@pytest.mark.parametrize(**by_id(MANY_ROWS + MANY_STRETCHES + LARGE_WEIGHTS))
def test_large(case):
    check(case)


sizes = st.integers(1, 20)


@st.composite
def cases(draw):
    """Small cases of both entries, T, N and I down to 0."""
    return Case(
        draw(st.sampled_from(("recurrence", "layer"))),
        T=draw(st.integers(0, 9)),
        N=draw(st.integers(0, 9)),
        I=draw(st.integers(0, 20)),
        H=draw(sizes),
        P=draw(st.none() | sizes),
        D=draw(st.integers(1, 2)),
        dtype=draw(st.sampled_from(DTYPES)),
        wide=draw(st.booleans()),
        masks=draw(st.sampled_from(MASKS)),
        biases=draw(st.integers(0, 2)),
        gradients=draw(st.integers(0, 15)),
    )


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(cases())
def test_any_small_case(case):
    torch.manual_seed(0)
    check(case)
