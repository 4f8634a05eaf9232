"""Loads the compiled library, once, and says what it holds.

The library has no Python in it: it is one file for all Python versions, loaded as torch loads an
extension of its ops. A package that was installed without a compiler has none, and everything runs
on the reference.
"""

import json
import os
from pathlib import Path

import torch


def library_path() -> Path | None:
    """Where the compiled library lies, or None where none was built."""
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


# At import, so that for torch.compile it is a constant.
_reason = _load()


def load() -> str | None:
    """None where the compiled library is loaded, else the reason why it is not."""
    return _reason


def _in_child() -> None:
    """In a forked child whose first thread cannot have torch's threads any more (where they could
    not be ended before the fork: csrc/cpu/openmp.cpp), nobody is to wait for them."""
    if torch.ops.fastlstm.cpu_without_workers():
        torch.set_num_threads(1)


if _reason is None and hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def cpu_isa() -> str:
    """The instruction set that the CPU kernels run on here: 'generic', 'avx2', 'avx512' or 'amx';
    with products of bytes, for 8-bit weights, 'avxvnni', 'avx512vnni' and, on aarch64, 'dotprod';
    or 'avx512bf16' (on AMD, or where FASTLSTM_CPU_ISA names it), or 'amx-emulated' where that names
    it. Needs `load()` to be None.

    Raises:
        RuntimeError: FASTLSTM_CPU_ISA names one that this machine does not have.
    """
    return torch.ops.fastlstm.cpu_isa()


def cpu_choice() -> dict:
    """Which kernels the CPU runs and why, as `csrc/cpu/isa/dispatch.cpp` says: isa, why, l2_bytes
    (a core's second-level cache, by which work is cut), and products: how those of each dtype are
    made. Needs `load()` to be None; raises as `cpu_isa`.
    """
    return json.loads(torch.ops.fastlstm.cpu_choice())


def cuda_architectures() -> tuple[str, ...]:
    """The GPU architectures that the library has kernels for, such as ("80", "90a"); none where it
    was built without CUDA. Needs `load()` to be None."""
    return tuple(filter(None, torch.ops.fastlstm.cuda_architectures().split(",")))
