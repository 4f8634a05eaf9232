"""No limits: streams in chunks of any size, no steps and no rows, more steps than 16 bits count,
more gates than 32."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from on_backends import served_here
from pairs import needs_library, on_cpu, pair
from streams import check_stream

from fastlstm import FastLSTM

sys.path.insert(0, str(Path(__file__).parents[1] / "simt"))
import family

no_cuda = pytest.mark.skipif(family.load() is not None, reason=str(family.load()))
BACKENDS = [on_cpu, "reference", pytest.param("cuda", marks=no_cuda)]
LARGE = "FASTLSTM_TEST_LARGE"


@pytest.mark.shows("step")
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunks=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    layers=st.integers(1, 2),
    proj_size=st.sampled_from([0, 2]),
    by_step=st.booleans(),
)
def test_a_stream_is_the_whole_sequence(backend, chunks, layers, proj_size, by_step):
    with served_here("cuda", "simt"):
        options = {"num_layers": layers, "proj_size": proj_size}
        check_stream(backend, chunks, by_step=by_step, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(0, 3), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("every", [None, 2])
def test_no_steps_or_no_rows(backend, sizes, every):
    T, N = sizes
    options = {"bidirectional": True, "proj_size": 2, "checkpoint_every": every}
    with served_here("cuda", "simt"):
        fast = FastLSTM(3, 4, 2, backend=backend, **options)
        x = torch.zeros(T, N, 3, requires_grad=True)
        hx = [torch.randn(4, N, k, requires_grad=True) for k in (2, 4)]
        masks = {
            "lengths": torch.zeros(N, dtype=torch.int64),
            "reset_mask": torch.zeros(T, N, dtype=torch.bool),
        }
        y, state, cells = fast(x, hx, return_cell_sequence=True, **masks)
        assert y.shape == (T, N, 4) and cells.shape == (T, N, 8)
        torch.testing.assert_close(state, tuple(hx), rtol=0, atol=0)
        (y.sum() + state[0].sum() + 2 * state[1].sum() + cells.sum()).backward()
        assert hx[0].grad.eq(1).all() and hx[1].grad.eq(2).all()
        assert x.grad.shape == x.shape
        assert not any(p.grad.any() for p in fast.parameters())


@needs_library
def test_more_steps_than_16_bits_count():
    """The results are nn.LSTM's; the gradients those of pieces of a thousand steps."""
    T = 70_000
    lstm, fast = pair(2, 3, dtype=torch.float64)
    x = torch.randn(T, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), lstm(x), rtol=1e-11, atol=1e-12)
    found = []
    for every in (None, 1000):
        fast.checkpoint_every = every
        y = fast(x)[0]
        found.append(torch.autograd.grad((y * x[..., :1]).sum(), list(fast.parameters())))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)  # sums of 70,000 terms


def _available() -> int:
    """Bytes of memory that processes may still take; 0 where nothing says so."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    return sum(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))


@needs_library
@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get(LARGE) != "1" or _available() < 14 << 30,
    reason=f"needs 14 GiB of free memory and minutes: set {LARGE}=1",
)
def test_more_gates_than_32_bits_count():
    """T * N * 4H > 2^31, with a tape: every row is one of eight, forward and backward."""
    T, H, few = 9, 64, 8
    N = few * (2**31 // (T * 4 * H * few) + 1)
    assert T * N * 4 * H > 2**31
    fast = FastLSTM(1, H, dtype=torch.bfloat16)
    x = torch.randn(T, few, 1, dtype=torch.bfloat16).requires_grad_()
    small, (h, _) = fast(x)
    small.sum().backward()
    expected, x.grad = x.grad.clone(), None
    many = x.detach()[:, None].expand(T, N // few, few, 1).reshape(T, N, 1).requires_grad_()
    y, (h_n, _) = fast(many)
    y.sum().backward()
    for got, wanted in ((y, small), (many.grad, expected), (h_n, h)):
        for part in got.detach().unflatten(1, (-1, few)).split(1 << 14, 1):
            torch.testing.assert_close(part, wanted[:, None].expand_as(part))
