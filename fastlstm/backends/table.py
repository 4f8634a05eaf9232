"""The table of backends: which of them serves a call, and why the others do not.

`reject(call)` of a row returns None where the backend serves the call, otherwise a sentence that
says why not; the choice, the error message and `python -m fastlstm` all use it. A new backend is a
row here, a folder with its kernels, and, where another backend's kernels are registered for
`lstm_*` on its device, a prefix of ops of its own (gpu.py).
"""

import logging
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import native
from . import triton as triton_kernels

log = logging.getLogger("fastlstm")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)


class Call(NamedTuple):
    """What the choice of a backend depends on."""

    device: str  # device type, such as "cpu"
    dtype: torch.dtype
    # Of a "cuda" device: its compute capability, such as (9, 0), or None where there is no GPU.
    capability: tuple[int, int] | None = None
    hip: bool = False  # torch for ROCm, whose devices are "cuda" too

    @classmethod
    def of(cls, device: torch.device | str, dtype: torch.dtype) -> "Call":
        """A call with tensors on `device`; "cuda" without an index is the current device."""
        device = torch.device(device)
        if device.type != "cuda":
            return cls(device.type, dtype)
        return cls("cuda", dtype, _capability(device.index), torch.version.hip is not None)


def _constant_in_graphs(function):
    """Marks `function` for torch.compile to evaluate while tracing, as
    torch.compiler.assume_constant_result does, which would import the whole compiler here."""
    function._dynamo_marked_constant = True
    return function


_capabilities: dict[int, tuple[int, int]] = {}


@_constant_in_graphs
def _capability(index: int | None) -> tuple[int, int] | None:
    if index is None or index not in _capabilities:
        if not torch.cuda.is_available():
            return None
        index = torch.cuda.current_device() if index is None else index
        _capabilities[index] = torch.cuda.get_device_capability(index)
    return _capabilities[index]


class Backend(NamedTuple):
    """prefix: the prefix of its ops (ops/recurrence.py). reject: why it does not serve a call."""

    name: str
    prefix: str
    reject: Callable[[Call], str | None]


def _reject_dtype(call: Call) -> str | None:
    if call.dtype not in DTYPES:
        return f"dtype {call.dtype} is not one of float64, float32, bfloat16, float16"
    return None


def _reject_gpu(call: Call) -> str | None:
    """The reasons that hold for both GPU backends."""
    if call.device != "cuda":
        return f"the tensors are on {call.device!r}, not on a GPU"
    if call.capability is None:
        return "torch finds no GPU that it can use"
    if not call.hip and call.capability < LEAST_CAPABILITY:
        return f"the GPU is of compute capability {_text(call.capability)}, expected 8.0 or later"
    return _reject_dtype(call)


def _text(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether the library's code for an architecture such as "80" or "90a" runs on a GPU."""
    least = divmod(int(re.sub(r"\D", "", architecture)), 10)
    # Code for "90a" runs on 9.0 only; that for "80" includes PTX for later GPUs.
    return capability == least if architecture.endswith("a") else capability >= least


def _reject_cuda(call: Call) -> str | None:
    reason = _reject_gpu(call)
    if reason is None and call.hip:
        return "this torch is for ROCm, which the CUDA kernels are not"
    if reason is None:
        reason = native.load()
    if reason is not None:
        return reason
    architectures = native.cuda_architectures()
    if not architectures:
        return "the compiled library was built without CUDA (no nvcc was found)"
    if not any(_runs_on(a, call.capability) for a in architectures):
        return (
            f"the compiled library is for compute capability {', '.join(architectures)}, the GPU "
            f"has {_text(call.capability)}: build with FASTLSTM_CUDA_ARCHS"
        )
    return None


@_constant_in_graphs
def _no_triton() -> str | None:
    return triton_kernels.available()


def _reject_triton(call: Call) -> str | None:
    return _reject_gpu(call) or _no_triton()


def _reject_cpu(call: Call) -> str | None:
    if call.device not in ("cpu", "meta"):
        return f"the tensors are on {call.device!r}, not on the CPU"
    return _reject_dtype(call) or native.load()


def _reject_reference(call: Call) -> str | None:
    if not call.dtype.is_floating_point:
        return f"dtype {call.dtype} is not a floating-point type"
    return None


# "auto" is the first that does not reject the call.
TABLE = (
    Backend("cpu", "lstm", _reject_cpu),
    Backend("cuda", "lstm", _reject_cuda),
    Backend("triton", "triton", _reject_triton),
    Backend("reference", "reference", _reject_reference),
)
NAMES = ("auto", *(row.name for row in TABLE))

_warned: set[Call] = set()


def check_name(backend: str) -> str:
    """Returns `backend`; raises ValueError if the table does not have it."""
    if backend not in NAMES:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(map(repr, NAMES))}")
    return backend


def select(backend: str, call: Call) -> Backend:
    """The row that serves `call`: that of `backend`, with "auto" the first that does not reject it.

    Raises:
        ValueError: there is no such backend. RuntimeError: it rejects the call; the text says why.
    """
    check_name(backend)
    reasons = []
    for row in TABLE:
        if backend not in ("auto", row.name):
            continue
        reason = row.reject(call)
        if reason is None:
            if backend == "auto" and row.name == "reference":
                _warn_slow(call, reasons)
            return row
        reasons.append(f"{row.name}: {reason}")
    raise RuntimeError(
        f"fastlstm: backend {backend!r} cannot run {call.dtype} on {call.device!r} "
        f"({'; '.join(reasons)}). `python -m fastlstm` shows what was built and what serves which "
        "device and dtype"
    )


def _warn_slow(call: Call, reasons: list[str]) -> None:
    if torch.compiler.is_compiling() or call in _warned:
        return
    _warned.add(call)
    log.debug("reference serves %s: %s", call, reasons)
    warnings.warn(
        f"fastlstm runs {call.dtype} on {call.device!r} with the slow reference backend "
        f"({'; '.join(reasons)}). "
        'Ask for it by name, backend="reference", to silence this.',
        RuntimeWarning,
        stacklevel=3,
    )
