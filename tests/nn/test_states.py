"""States of FastLSTM, its step and FastLSTMCell, of any shape, rank, dtype and kind: taken only
where they fit, and otherwise refused before torch's kernels, some of which read on."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairs import ignore_onednn, one_thread  # noqa: F401  (one_thread is a fixture)

from fastlstm import FastLSTM, FastLSTMCell

pytestmark = ignore_onednn
# Sizes that coincide, so that what is wrong in one dimension fits in another.
N, I, H, L = 3, 3, 3, 2
BACKENDS = ["auto", "reference"]

dtypes = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.half, torch.int64])
tensors = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.sampled_from([0, 1, 2, 3]), max_size=4),
    dtypes,
)
fitting = st.sampled_from([(H,), (N, H), (L, H), (L, N, H), (1, N, H)]).map(torch.zeros)
entries = st.one_of(fitting, fitting, tensors, st.none(), st.just(1.0), st.just([0.0] * H))
states = st.one_of(
    st.lists(entries, min_size=2, max_size=2),
    st.lists(entries, max_size=4),
    st.tuples(fitting, entries),
    fitting.map(lambda t: (t, t)),
    tensors,
    st.sampled_from([1, "hc", {"h": 0, "c": 1}, torch.zeros(2, L, H), torch.zeros(2, N, H)]),
)
# What nn.LSTM and nn.LSTMCell say of a pair of tensors of the wrong sizes.
SIZES = re.compile(
    r"Expected hidden\[[01]\] size|hx and cx should also be|Input batch size \d+ doesn't match "
    r"hidden[01]|hidden[01] has inconsistent hidden_size"
)
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(call, given, name, shape, c_of_any_dtype=False):
    """`call(given)` gives a result if and only if `given` is a pair of tensors of this shape."""
    try:
        call(given)
    except ValueError as error:
        assert re.search(rf"\b{name}\b|\bhx\b", str(error)), error
    except RuntimeError as error:
        assert SIZES.search(str(error)), error
    else:
        h, c = given
        assert tuple(h.shape) == tuple(c.shape) == shape
        assert h.dtype == torch.float32
        assert c_of_any_dtype or c.dtype == torch.float32


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batched", [True, False])
@many
@given(states=states)
def test_module(grad, backend, batched, states):
    fast = FastLSTM(I, H, L, backend=backend)
    x = torch.zeros(2, N, I) if batched else torch.zeros(2, I)
    with torch.set_grad_enabled(grad):
        check(lambda hx: fast(x, hx), states, "hx", (L, N, H) if batched else (L, H))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batched", [True, False])
@many
@given(states=states)
@torch.no_grad()
def test_step(backend, batched, states):
    fast = FastLSTM(I, H, L, backend=backend)
    x = torch.zeros(N, I) if batched else torch.zeros(I)
    check(lambda s: fast.step(x, s), states, "state", (L, N, H) if batched else (L, H))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batched", [True, False])
@many
@given(states=states)
def test_cell(grad, backend, batched, states):
    cell = FastLSTMCell(I, H, backend=backend)
    x = torch.zeros(N, I) if batched else torch.zeros(I)
    with torch.set_grad_enabled(grad):
        check(lambda hx: cell(x, hx), states, "hx", (N, H) if batched else (H,), True)


@pytest.mark.parametrize("state", [1, torch.zeros(2, L, N, H), (), (None, None)])
def test_step_names_its_own_argument(state):
    with pytest.raises(ValueError, match=r"state: got .*, expected a pair of tensors"):
        FastLSTM(I, H, L).step(torch.zeros(N, I), state)


def test_one_tensor_of_two_unbatched_states_is_taken_as_torch_takes_it():
    both = torch.randn(2, L, H)
    fast, cell = FastLSTM(I, H, L), FastLSTMCell(I, H)
    x = torch.randn(4, I)
    torch.testing.assert_close(fast(x, both), fast.to_torch()(x, both))
    torch.testing.assert_close(cell(x[0], both[0]), cell.to_torch()(x[0], both[0]))


@torch.no_grad()
def test_states_on_another_device():
    away, x = torch.zeros(1, N, H, device="meta"), torch.zeros(N, I)
    fast = FastLSTM(I, H)
    with pytest.raises(RuntimeError, match=r"hidden tensors at|device"):
        fast.step(x, (away, torch.zeros(1, N, H)))
