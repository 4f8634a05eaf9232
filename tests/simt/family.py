"""The op family "simt": the CUDA kernels and the code around them, run on CPU tensors."""

import importlib
import sys
from functools import cache
from pathlib import Path

import torch

from fastlstm import gpu_ops, layer_ops, ops

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
build = importlib.import_module("build")

KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
SOURCES = [ROOT / "csrc" / "cuda_ops.cpp", ROOT / "csrc" / "recurrence_call.cpp", *KERNELS]


@cache
def load() -> str | None:
    """Build and load the family; None, or the reason why it cannot be had here."""
    if build.compiler() is None:
        return "no C++ compiler"
    include = Path(torch.__file__).parent / "include"
    flags = ["-DFASTLSTM_SIMT", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    flags += ["-isystem", str(include)]
    libraries = Path(torch.__file__).parent / "lib"
    options = ["-Wl,--no-as-needed", f"-L{libraries}", "-ltorch", "-ltorch_cpu"]
    path = build.library("fastlstm_simt", SOURCES, flags, options)
    torch.ops.load_library(str(path))
    ops.define("simt")
    layer_ops.define("simt")
    gpu_ops.register("simt", *gpu_ops.compiled("simt_kernels"), "CPU")
    return None
