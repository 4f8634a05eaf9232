"""Loads the compiled library, once, and tells what it contains.

It uses no Python API, so one file serves all Python versions; torch.ops.load_library loads it. A
package that was installed without a compiler has no library, and runs on the reference.
"""

import json
import os
from pathlib import Path

import torch


def library_path() -> Path | None:
    """The path of the compiled library, or None where none was built."""
    package = Path(__file__).parents[1]
    found = sorted(package.glob("_C*.so")) + sorted(package.glob("_C*.pyd"))
    return found[0] if found else None


def _load() -> str | None:
    if os.environ.get("FASTLSTM_NATIVE") == "0":
        return "FASTLSTM_NATIVE=0 is set"
    path = library_path()
    if path is None:
        return "no compiled library in this installation (it was built without a C++ compiler)"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled library does not load: {error}"
    return None


# At import, so that it is a constant for torch.compile.
_reason = _load()


def load() -> str | None:
    """None where the compiled library is loaded, otherwise the reason why it is not."""
    return _reason


def _in_child() -> None:
    """After a fork: if torch's threads could not be ended before it (csrc/cpu/openmp.cpp), they do
    not exist in the child, and its main thread must not wait for them."""
    if torch.ops.fastlstm.cpu_without_workers():
        torch.set_num_threads(1)


if _reason is None and hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def cpu_isa() -> str:
    """The instruction set of the CPU kernels on this machine: 'generic', 'avx2', 'avx512' or 'amx';
    with products of bytes, for 8-bit weights, 'avxvnni', 'avx512vnni' and, on aarch64, 'dotprod';
    'avx512bf16' (on AMD, or if FASTLSTM_CPU_ISA asks for it); 'amx-emulated' if FASTLSTM_CPU_ISA
    asks for it. Needs `load()` to be None.

    Raises:
        RuntimeError: FASTLSTM_CPU_ISA asks for one that this machine does not have.
    """
    return torch.ops.fastlstm.cpu_isa()


def cpu_choice() -> dict:
    """The CPU kernels that were chosen (csrc/cpu/isa/dispatch.cpp): isa; why; l2_bytes, a core's
    second-level cache, which blocks are sized for; products, the instructions for the products of
    each dtype. Needs `load()` to be None; raises as `cpu_isa`.
    """
    return json.loads(torch.ops.fastlstm.cpu_choice())


def cuda_architectures() -> tuple[str, ...]:
    """The GPU architectures that the library has kernels for, such as ("80", "90a"); none where it
    was built without CUDA. Needs `load()` to be None."""
    return tuple(filter(None, torch.ops.fastlstm.cuda_architectures().split(",")))
