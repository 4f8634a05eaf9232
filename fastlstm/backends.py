"""The one table of backends: which of them serves a call, and for each that does not, the reason.

A row is (name, family of ops, reject). `reject(call)` returns None where the backend serves the
call and else a sentence; it makes the choice, the error text and `python -m fastlstm`. A new
backend is a row here, a folder with its kernels, and, where it does not own its device's `lstm_*`
ops, a family of its own in `ops.FAMILIES`.
"""

import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import native

log = logging.getLogger("fastlstm")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Call(NamedTuple):
    """What the choice of a backend may depend on."""

    device: str  # device type, such as "cpu"
    dtype: torch.dtype


class Backend(NamedTuple):
    name: str
    family: str
    reject: Callable[[Call], str | None]


def _reject_cpu(call: Call) -> str | None:
    if call.device not in ("cpu", "meta"):
        return f"the tensors are on {call.device!r}, not on the CPU"
    if call.dtype not in DTYPES:
        return f"dtype {call.dtype} is not one of float64, float32, bfloat16, float16"
    return native.load()


def _reject_reference(call: Call) -> str | None:
    if not call.dtype.is_floating_point:
        return f"dtype {call.dtype} is not a floating-point type"
    return None


TABLE = (
    Backend("cpu", "lstm", _reject_cpu),
    Backend("reference", "reference", _reject_reference),
)
NAMES = ("auto", *(row.name for row in TABLE))

_warned: set[Call] = set()


def check_name(backend: str) -> str:
    """`backend` itself if the table knows it, else a ValueError."""
    if backend not in NAMES:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(map(repr, NAMES))}")
    return backend


def select(backend: str, call: Call) -> Backend:
    """The row that serves `call`: the one named, or with "auto" the first that does not reject it.

    Raises:
        ValueError: no such backend. RuntimeError: the named backend rejects the call; the text says
        why.
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
