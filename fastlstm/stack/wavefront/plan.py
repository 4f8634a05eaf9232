"""Whether the layers of a stack run as a wavefront, and in chunks of how many steps.

Layer l + 1 needs of layer l no more than the steps it has come to itself. So with the T steps cut
in chunks of K, each layer runs a chunk behind the one below, beside it on the GPU, and L layers
take T + (L - 1) K steps' time in place of L T. That gains where one layer leaves most of the GPU
free: few rows, few units.

The environment variable FASTLSTM_WAVEFRONT: "auto" (the table below decides), "0" (never), "1"
(wherever there are two chunks or more). None of the constants has been measured on a GPU.
"""

import functools
import math
import os

import torch

from ... import precision

VARIABLE = "FASTLSTM_WAVEFRONT"

# Assumed, in us. A step on the GPU where all steps are one launch, and where each is a launch (or,
# with a projection, two); what a chunk costs there beside its steps (its input product, loading the
# weights, writing the tape to its place); and what it costs the host, which matters unless a CUDA
# graph is captured: 164 to 212 without a GPU (benchmarks/log.md).
STEP, LAUNCHED_STEP, CHUNK, HOST_CHUNK = 1.0, 2.6, 10.0, 190.0
LEAST_CHUNK = 16
# How many times as fast a wavefront is to be, or the layers run one after the other: as one op for
# the whole stack, where the kernels are the compiled ones.
WORTH = 1.3

# The largest H for which all steps are one launch that leaves room beside it, forward and
# backward: where csrc/cuda chooses clusters (tests/cuda/test_cuda_choice.py), without a projection
# and with one, and the ways "resident" and "sequence" of backends/triton/configs.py. Beyond it each
# step is a launch, or takes the whole GPU.
ONE_LAUNCH = {
    "lstm": {"16bit": 512, "tf32": 256, "ieee": 256},
    "triton": {"16bit": 256, "tf32": 192, "ieee": 96},
}
# Of the compiled kernels, with P up to half of H.
ONE_LAUNCH_PROJECTED = {"16bit": 512, "tf32": 512, "ieee": 448}
# Where each step is a launch, more than these rows times units leave no room beside one layer.
MOST_LAUNCHED = 16 * 512


def setting() -> str:
    """What FASTLSTM_WAVEFRONT says.

    Raises:
        ValueError: something else than auto, 0 or 1.
    """
    value = os.environ.get(VARIABLE) or "auto"
    if value not in ("auto", "0", "1"):
        raise ValueError(f"{VARIABLE}: got {value!r}, expected auto, 0 or 1")
    return value


setting._dynamo_marked_constant = True  # torch.compile calls it as it traces, and keeps the result


def possible(family: str, device: torch.device) -> bool:
    """Whether there may be wavefronts: with "auto", of GPU kernels."""
    asked = setting()
    return asked == "1" or (asked == "auto" and device.type == "cuda" and family in ONE_LAUNCH)


def chunk_steps(
    family: str, device: torch.device, dtype: torch.dtype, sizes: tuple, projected: bool
) -> int:
    """Steps of a chunk; T, where the layers are to run one after the other.

    Args:
        family: of the recurrence ops. sizes: (T, N, L, H).
    """
    T, N, L, H = sizes
    asked = setting()
    kind = _kind(dtype)
    most = ONE_LAUNCH[family if family in ONE_LAUNCH else "lstm"][kind]
    if projected and family != "triton":
        most = ONE_LAUNCH_PROJECTED[kind]
    one_launch = most >= H
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if L == 1 or asked == "0":
        return T
    # The other compiled kernels may be those of the whole grid, which need the GPU for themselves.
    launched = family == "triton" or dtype == torch.float64
    if asked == "auto" and not (
        (one_launch or launched) and _gains(device, N, H, one_launch, captured)
    ):
        return T
    step, host = STEP if one_launch else LAUNCHED_STEP, 0 if captured else HOST_CHUNK
    chunk = best_chunk(T, L, step, host)
    if 2 * chunk > T or (asked == "auto" and gain(T, L, chunk, step, host) < WORTH):
        return T
    return math.ceil(T / math.ceil(T / chunk))


def best_chunk(T: int, L: int, step: float, host: float) -> int:
    """The chunk with the least time for T steps of L layers. step: us of one on the GPU. host: us
    that the host needs to submit a chunk of a layer."""
    # (T + (L - 1) K) step + (T / K + L - 1) CHUNK, the GPU's time, is least at:
    chunk = math.sqrt(T * CHUNK / ((L - 1) * step))
    # The host needs L T / K host, and is to be no slower than the GPU's (T + (L - 1) K) step.
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
        # Launches that the host makes one by one come no faster from two layers than from one.
        return captured and N * H <= MOST_LAUNCHED
    # Blocks of one layer: 8 rows each at least, and from H = 65 on 32 units or fewer.
    blocks = math.ceil(N / 8) * (1 if H <= 64 else math.ceil(H / 32))
    return 2 * blocks <= _multiprocessors(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
