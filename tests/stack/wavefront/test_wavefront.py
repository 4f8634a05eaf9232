"""When layers run as a wavefront, and in chunks of how many steps."""

import math

import pytest
import torch

from fastlstm.stack.wavefront import plan as wavefront

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 132 multiprocessors; returns what says whether a graph is being captured."""
    capturing = []
    monkeypatch.setattr(wavefront, "_multiprocessors", lambda device: 132)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(capturing))
    return capturing


def chunk(T=1024, N=16, L=4, H=256, *, dtype=torch.bfloat16, family="triton", device=GPU, P=None):
    return wavefront.chunk_steps(family, device, dtype, (T, N, L, H), P is not None)


def time_of(T, L, K, step, host):
    gpu = (T + (L - 1) * K) * step + (T / K + L - 1) * wavefront.CHUNK
    return max(gpu, L * T / K * host)


@pytest.mark.parametrize("host", [0.0, wavefront.HOST_CHUNK])
@pytest.mark.parametrize("step", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("L", [2, 4, 7])
def test_the_best_chunk_takes_the_least_time(L, step, host):
    for T in (200, 1000, 5000):
        best = wavefront.best_chunk(T, L, step, host)
        K = range(wavefront.LEAST_CHUNK, T)
        least = min(time_of(T, L, k, step, host) for k in K)
        # What is added for the host's sake counts whole steps of the GPU only, without CHUNK.
        slack = (T / best + L) * wavefront.CHUNK if host else 0.001 * least
        assert time_of(T, L, best, step, host) <= least + slack
        assert best >= wavefront.LEAST_CHUNK


def test_chunks_are_even_and_two_at_least(gpu):
    for T in (1, 2, 31, 100, 333, 1024, 70_001):
        for L in (2, 3, 6):
            K = chunk(T=T, L=L)
            assert K == T or (2 * K <= T + 1 and math.ceil(T / K) * K - T < math.ceil(T / K))
    assert chunk(T=20) == 20
    assert chunk(T=4096) < 4096
    assert chunk(T=4096, L=1) == 4096


def test_a_captured_graph_has_shorter_chunks(gpu):
    eager = chunk()
    gpu.append(True)
    assert wavefront.LEAST_CHUNK <= chunk() < eager


def test_only_where_enough_is_gained(gpu, monkeypatch):
    """Beside the GPU's time the host's, for each chunk and layer."""
    assert wavefront.gain(1000, 4, 100, 1.0, 0.0) == pytest.approx(4000 / (1300 + 13 * 10))
    assert wavefront.gain(1000, 4, 100, 1.0, 200.0) == pytest.approx(4000 / (4 * 10 * 200))
    assert chunk(T=512, L=2) == 512 and chunk(T=2048, L=2) < 2048
    monkeypatch.setattr(wavefront, "HOST_CHUNK", 20.0)
    assert chunk(T=512, L=2) < 512
    monkeypatch.setattr(wavefront, "WORTH", 1.9)
    assert chunk(T=512, L=2) == 512
    monkeypatch.setenv(wavefront.VARIABLE, "1")
    assert chunk(T=512, L=2) < 512  # asked for
    monkeypatch.setenv(wavefront.VARIABLE, "auto")
    monkeypatch.setattr(wavefront, "WORTH", 1.3)
    monkeypatch.setattr(wavefront, "HOST_CHUNK", 190.0)
    gpu.append(True)
    assert chunk(T=512, L=2) < 512


def test_only_where_a_layer_leaves_room(gpu):
    assert chunk(N=1) < 1024
    assert chunk(N=128, H=128) < 1024
    assert chunk(N=128, H=256) == 1024  # 96 of the 132 multiprocessors
    assert chunk(H=1024) == 1024  # a launch for each step: no room in the host's time
    assert chunk(P=64) < 1024
    assert chunk(dtype=torch.float64) == 1024
    gpu.append(True)
    assert chunk(dtype=torch.float64) < 1024
    assert chunk(dtype=torch.float64, H=1024) == 1024
    assert chunk(device=CPU) == 1024


def test_the_compiled_kernels(gpu):
    assert chunk(family="lstm") < 1024 and chunk(family="lstm", dtype=torch.float16) < 1024
    assert chunk(family="lstm", P=64, H=512) < 1024
    assert chunk(family="lstm", H=640) == 1024  # may take the whole GPU
    gpu.append(True)
    assert chunk(family="lstm", dtype=torch.float64, P=64) < 1024
    assert chunk(family="lstm", dtype=torch.float32, P=64, H=640) == 1024  # may take the whole GPU


def test_tf32_is_torchs_setting(gpu):
    before = torch.backends.cudnn.rnn.fp32_precision
    try:
        for setting, gains in (("tf32", True), ("ieee", False)):
            torch.backends.cudnn.rnn.fp32_precision = setting
            assert (chunk(dtype=torch.float32, H=192) < 1024) is gains
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


def test_the_variable(gpu, monkeypatch):
    assert wavefront.possible("lstm", GPU) and wavefront.possible("triton", GPU)
    assert not wavefront.possible("reference", GPU) and not wavefront.possible("triton", CPU)
    monkeypatch.setenv(wavefront.VARIABLE, "0")
    assert chunk() == 1024 and not wavefront.possible("lstm", GPU)
    monkeypatch.setenv(wavefront.VARIABLE, "1")
    assert chunk(N=256, H=2048) < 1024 and wavefront.possible("reference", CPU)
    assert chunk(device=CPU, family="reference") < 1024
    monkeypatch.setenv(wavefront.VARIABLE, "yes")
    with pytest.raises(ValueError, match="FASTLSTM_WAVEFRONT: got 'yes', expected auto, 0 or 1"):
        chunk()
