"""The variants' ops of the families "simt_variants" and "simt": csrc/cuda's variant kernels and the
code around them, run on CPU tensors. A library of its own, beside family.py's."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from family import build

from fastlstm.backends import gpu
from fastlstm.ops import variant as variant_ops

CSRC = build.ROOT / "csrc"
SOURCES = [CSRC / "torch" / "cuda_variant.cpp", CSRC / "torch" / "recurrence_call.cpp"]
SOURCES += sorted((CSRC / "cuda" / "variant").glob("*.cu"))
_loaded: list[ctypes.CDLL] = []


@cache
def load() -> str | None:
    """Build and load the family; None, or the reason why it cannot be had here."""
    if build.compiler() is None:
        return "no C++ compiler"
    root = Path(torch.__file__).parent
    flags = ["-DFASTLSTM_SIMT", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    flags += ["-isystem", str(root / "include")]
    options = ["-Wl,--no-as-needed", f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu"]
    path = build.library("fastlstm_simt_variants", SOURCES, flags, options)
    torch.ops.load_library(str(path))
    _loaded.append(ctypes.CDLL(str(path)))
    _loaded[0].simt_launches.restype = ctypes.c_uint64
    kernels = gpu.compiled_variants("simt_kernels")
    for name in ("simt_variants", "simt"):
        variant_ops.define(name)
        variant_ops.register(name, *kernels, "CPU")
    return None


def launches() -> int:
    """How many kernels have run so far."""
    return _loaded[0].simt_launches()


def library() -> ctypes.CDLL:
    """What `load` loaded."""
    return _loaded[0]
