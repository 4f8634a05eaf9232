"""Whether the layers of a stack run as a wavefront, and the number of steps in a chunk.

Step t of layer l + 1 depends on layer l up to step t only. So with the T steps divided into chunks
of K, each layer runs one chunk behind the layer below, concurrently on the GPU, and L layers take
the time of T + (L - 1) K steps instead of L T. That is faster where one layer leaves most of the
GPU idle: few rows, few units.

The environment variable FASTLSTM_WAVEFRONT: "auto" (the table below decides), "0" (never), "1"
(wherever there are two chunks or more). None of the constants has been measured on a GPU.
"""

import functools
import math
import os

import torch

from ... import precision

VARIABLE = "FASTLSTM_WAVEFRONT"

# Assumed, in us: a step on the GPU where all steps are one launch, and where each is a launch (two
# with a projection); the rest of a chunk on the GPU (its input product, loading the weights,
# copying the tape); and a chunk on the host, which is free where a CUDA graph is captured: 164 to
# 212 without a GPU (benchmarks/log.md).
STEP, LAUNCHED_STEP, CHUNK, HOST_CHUNK = 1.0, 2.6, 10.0, 190.0
LEAST_CHUNK = 16
# The least predicted gain for which "auto" takes the wavefront; below it the layers run one after
# the other, with the compiled kernels as one op for the whole stack.
WORTH = 1.3

# The largest H for which all steps are one launch that leaves room for others, forward and
# backward: where csrc/cuda chooses clusters (tests/cuda/test_cuda_choice.py), and for Triton
# "resident" and "sequence" of backends/triton/configs.py. Beyond it each step is a launch, or takes
# the whole GPU.
ONE_LAUNCH = {
    "lstm": {"16bit": 512, "tf32": 256, "ieee": 256},
    "triton": {"16bit": 256, "tf32": 192, "ieee": 96},
}
# The same for the compiled kernels with a projection, P up to half of H.
ONE_LAUNCH_PROJECTED = {"16bit": 512, "tf32": 512, "ieee": 448}
# Where each step is a launch: with more rows times units one layer fills the GPU.
MOST_LAUNCHED = 16 * 512


def setting() -> str:
    """The value of FASTLSTM_WAVEFRONT, "auto" where it is not set.

    Raises:
        ValueError: it is not auto, 0 or 1.
    """
    value = os.environ.get(VARIABLE) or "auto"
    if value not in ("auto", "0", "1"):
        raise ValueError(f"{VARIABLE}: got {value!r}, expected auto, 0 or 1")
    return value


setting._dynamo_marked_constant = True  # torch.compile evaluates it while tracing


def possible(prefix: str, device: torch.device) -> bool:
    """Whether wavefronts are possible: with "auto" only for GPU kernels."""
    asked = setting()
    return asked == "1" or (asked == "auto" and device.type == "cuda" and prefix in ONE_LAUNCH)


def chunk_steps(prefix: str, device: torch.device, dtype: torch.dtype, sizes: tuple, projected: bool) -> int:
    """The steps of a chunk; T if the layers should run one after the other.

    Args:
        prefix: that of the recurrence ops. sizes: (T, N, L, H).
    """
    T, N, L, H = sizes
    asked = setting()
    kind = _kind(dtype)
    most = ONE_LAUNCH[prefix if prefix in ONE_LAUNCH else "lstm"][kind]
    if projected and prefix != "triton":
        most = ONE_LAUNCH_PROJECTED[kind]
    one_launch = most >= H
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if L == 1 or asked == "0":
        return T
    # Beyond ONE_LAUNCH the compiled kernels may be those that take the whole GPU, but in float64.
    launched = prefix == "triton" or dtype == torch.float64
    if asked == "auto" and not ((one_launch or launched) and _gains(device, N, H, one_launch, captured)):
        return T
    step, host = STEP if one_launch else LAUNCHED_STEP, 0 if captured else HOST_CHUNK
    chunk = best_chunk(T, L, step, host)
    if 2 * chunk > T or (asked == "auto" and gain(T, L, chunk, step, host) < WORTH):
        return T
    return math.ceil(T / math.ceil(T / chunk))


def best_chunk(T: int, L: int, step: float, host: float) -> int:
    """The steps of a chunk with the least predicted time for T steps of L layers. step: us of a
    step on the GPU. host: us in which the host submits a chunk of one layer."""
    # The GPU's time, (T + (L - 1) K) step + (T / K + L - 1) CHUNK, is least for this K:
    chunk = math.sqrt(T * CHUNK / ((L - 1) * step))
    # The host's time, L T / K host, should not exceed the GPU's, (T + (L - 1) K) step.
    a, b, c = (L - 1) * step, T * step, L * T * host
    kept_up = (math.sqrt(b * b + 4 * a * c) - b) / (2 * a)
    return max(LEAST_CHUNK, math.ceil(max(chunk, kept_up)))


def gain(T: int, L: int, chunk: int, step: float, host: float) -> float:
    """How many times as fast L layers in such chunks are as one after the other."""
    chunks = math.ceil(T / chunk)
    chunk = math.ceil(T / chunks)
    gpu = (T + (L - 1) * chunk) * step + (chunks + L - 1) * CHUNK
    return L * T * step / max(gpu, L * chunks * host)


def _kind(dtype: torch.dtype) -> str:
    if dtype.itemsize == 2:
        return "16bit"
    return "tf32" if dtype == torch.float32 and precision.allows_tf32() else "ieee"


def _gains(device: torch.device, N: int, H: int, one_launch: bool, captured: bool) -> bool:
    if device.type != "cuda":
        return False
    if not one_launch:
        # Bound by the host, which launches the steps of two layers no faster than those of one.
        return captured and N * H <= MOST_LAUNCHED
    # Thread blocks of one layer: of at least 8 rows, and for H > 64 of at most 32 units.
    blocks = math.ceil(N / 8) * (1 if H <= 64 else math.ceil(H / 32))
    return 2 * blocks <= _multiprocessors(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
