"""Wrong arguments on a GPU: an error that names them, and the next call works."""

import pytest
import torch
from on_device import no_waiting, prefix_of
from op_cases import Case, draw, forward, to

from fastlstm import FastLSTM

pytestmark = pytest.mark.gpu

T, N, I, H = 4, 3, 5, 6


@pytest.fixture
def fast(backend, device):
    return FastLSTM(I, H, backend=backend).to(device)


@pytest.fixture(autouse=True)
def works_afterwards(fast, device):
    """A device error would show only later."""
    yield
    x = torch.randn(T, N, I, device=device)
    y = fast(x)[0]
    other = FastLSTM(I, H, backend="reference").to(device)
    other.load_state_dict(fast.state_dict())
    torch.testing.assert_close(y, other(x)[0])


def test_input_on_the_cpu(fast, real_gpu):
    with pytest.raises((RuntimeError, ValueError), match=r"cpu|device"):
        fast(torch.randn(T, N, I))


def test_states_on_the_cpu(fast, device, real_gpu):
    with pytest.raises((RuntimeError, ValueError), match=r"cpu|device"):
        fast(torch.randn(T, N, I, device=device), (torch.zeros(1, N, H), torch.zeros(1, N, H)))


def test_module_on_the_cpu_with_a_gpu_backend(backend, real_gpu):
    with pytest.raises(RuntimeError, match="not on a GPU"):
        FastLSTM(I, H, backend=backend)(torch.randn(T, N, I))


@pytest.mark.parametrize("place", [1, 2, 3, 5, 6])
def test_op_argument_on_the_cpu(place, backend, device, real_gpu):
    case = Case("recurrence", T=T, N=N, H=H, dtype=torch.float32, masks="full")
    arguments = to(None, draw(case)[0], device)
    arguments[place] = arguments[place].cpu()
    with pytest.raises((RuntimeError, ValueError), match=r"cpu|device"):
        forward(case, prefix_of(backend), arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_wrong_dtype(dtype, fast, device):
    with pytest.raises((RuntimeError, ValueError), match=r"dtype|type"):
        fast(torch.randn(T, N, I, device=device).to(dtype))


def test_integers(fast, device):
    with pytest.raises((RuntimeError, ValueError), match=r"dtype|type|Int|Long"):
        fast(torch.ones(T, N, I, device=device, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(T, N, I + 1), (T, N, I, 1)], ids=str)
def test_wrong_shape(shape, fast, device):
    with pytest.raises((RuntimeError, ValueError), match="input"):
        fast(torch.randn(*shape, device=device))


def test_mask_of_another_dtype(fast, device):
    with pytest.raises(ValueError, match="reset_mask"):
        fast(torch.randn(T, N, I, device=device), reset_mask=torch.zeros(T, N, device=device))


def test_lengths_out_of_range(fast, device, real_gpu, monkeypatch):
    """Clamped without waiting for the device; with FASTLSTM_CHECK=1 an error that waits."""
    x = torch.randn(T, N, I, device=device)
    wild = torch.tensor([-3, 2, T + 5], device=device)
    with no_waiting(device):
        got = fast(x, lengths=wild)
    torch.testing.assert_close(got, fast(x, lengths=wild.clamp(0, T)), rtol=0, atol=0)
    monkeypatch.setenv("FASTLSTM_CHECK", "1")
    with pytest.raises(ValueError, match=f"lengths: got values from -3 to {T + 5}"):
        fast(x, lengths=wild)
