"""Replacements of the GPU backends and of the grid's sizes in a dry run.

A dry run shows that the program runs to its end with its tests and checks; it tells nothing about a
GPU.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
import warnings
from dataclasses import replace

import torch

from benchmarks.common.machine import ROOT
from benchmarks.common.shapes import Case

VARIABLE = "FASTLSTM_GPU_DRY"
BACKENDS = ("cuda", "triton")
SIMULATIONS = ("family", "variant_family")  # modules of tests/simt


def is_dry() -> bool:
    return os.environ.get(VARIABLE) == "1"


def prepare_environment() -> None:
    """Selects Triton's interpreter, which runs on the CPU; before the first import of Triton."""
    os.environ["TRITON_INTERPRET"] = "1"


@functools.cache
def stand_ins() -> dict[str, str]:
    """For each GPU backend the prefix of the ops that replace it on the CPU: the CUDA sources
    compiled for the CPU (tests/simt), the Triton kernels in Triton's interpreter, or the reference
    where these are not available.
    """
    from fastlstm.backends import gpu
    from fastlstm.backends import triton as triton_kernels
    from fastlstm.ops import variant as variant_ops

    found = {"cuda": "reference", "triton": "reference"}
    simt = ROOT / "tests" / "simt"
    if (simt / "family.py").exists():
        sys.path.insert(0, str(simt))
        try:
            reason = next(filter(None, (importlib.import_module(f).load() for f in SIMULATIONS)), None)
        except Exception as error:  # a failing compiler must not prevent the rest of the dry run
            reason = f"{type(error).__name__}: {error}"[:500]
        if reason is None:
            found["cuda"] = "simt"
        else:
            print(f"the CUDA sources do not run here: {reason}", file=sys.stderr)
    reason = triton_kernels.available() or interpreter_fails(gpu._triton_forward)
    if reason is None:
        gpu.register("triton", gpu._triton_forward, gpu._triton_backward, "CPU")
        of_variants = gpu.triton_variant_forward, gpu.triton_variant_loop
        variant_ops.register("triton", *of_variants, "CPU")
        found["triton"] = "triton"
    else:
        print(f"the Triton kernels do not run here: {reason}", file=sys.stderr)
    return found


def interpreter_fails(forward) -> str | None:
    """Why Triton's interpreter cannot run the kernels here, or None: some of its versions are
    incompatible with some of NumPy's.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "TRITON_INTERPRET=1 is not set"
    state, weight = torch.zeros(1, 1, 2), torch.zeros(1, 8, 2)
    given = (torch.zeros(2, 1, 1, 8), state, state, weight, None, None, None, True, True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            forward(*given)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


def fake_backends() -> dict[str, str]:
    """Adds rows for the GPU backends to fastlstm's table that serve the CPU; returns `stand_ins()`.

    For the rest of the process: only a child of a dry run calls it.
    """
    from fastlstm import precision
    from fastlstm.backends import table

    prefixes = stand_ins()
    precision._WIDE_CPU_PRODUCTS = False  # as on a GPU

    def reject(call):
        return None if call.dtype in table.DTYPES else f"no {call.dtype} in a dry run"

    rows = [table.Backend(name, prefix, reject) for name, prefix in prefixes.items()]
    kept = [row for row in table.TABLE if row.name not in prefixes]
    table.TABLE = (*rows, *kept)
    table.NAMES = ("auto", *(row.name for row in table.TABLE))
    return prefixes


def shrink(case: Case) -> Case:
    """A case that the CPU runs at once, different for different sizes of the grid: T <= 6, N <= 5,
    H <= 24.
    """

    def scaled(value: int, low: int, high: int, most: int) -> int:
        share = math.log2(max(value, low) / low) / math.log2(high / low)
        return 1 + round(min(share, 1.0) * (most - 1))

    H = scaled(case.H, 32, 2048, 24)
    return replace(
        case,
        T=scaled(case.T, 32, 1024, 6),
        N=scaled(case.N, 1, 256, 5),
        H=H,
        I=H,
        P=max(1, H // 2) if case.P else 0,
    )
