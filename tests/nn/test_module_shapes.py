"""FastLSTM beside nn.LSTM over sizes that hypothesis chooses: 0, 1, odd, and around the widths of
vector registers.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import ignore_onednn, needs_library, one_thread, pair  # noqa: F401  (one_thread is a fixture)

from fastlstm.testing import compare, make_input, make_states

pytestmark = [ignore_onednn, pytest.mark.usefixtures("poisoned_for_all")]

sizes = st.sampled_from([1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 65])


@pytest.fixture(scope="module")
def poisoned_for_all():
    """As poisoned_empty, but once: hypothesis wants fixtures that last for all of its examples."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@needs_library
@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(
    T=st.integers(1, 9),
    N=st.sampled_from([0, 1, 2, 3, 5, 8, 17]),
    I=sizes,
    H=sizes,
    num_layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    projected=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    with_states=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_size(
    T,
    N,
    I,
    H,
    num_layers,
    bidirectional,
    projected,
    bias,
    dtype,
    with_states,
    seed,
):
    torch.manual_seed(seed)
    lstm, fast = pair(
        I,
        H,
        num_layers,
        backend="cpu",
        bidirectional=bidirectional,
        proj_size=(H + 1) // 2 if projected and H > 1 else 0,
        bias=bias,
        dtype=dtype,
    )
    x = make_input(T, N, I, dtype)
    hx = make_states(lstm, N, dtype) if with_states else None
    compare(fast, lstm, x, hx)
