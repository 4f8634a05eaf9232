"""The op family "simt": the CUDA kernels and the code around them, run on CPU tensors."""

import contextlib
import ctypes
import importlib
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from fastlstm.backends import gpu
from fastlstm.ops import layer as layer_ops
from fastlstm.ops import recurrence as ops
from fastlstm.stack import whole

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
build = importlib.import_module("build")

CSRC = ROOT / "csrc"
# Those of the variants are variant_family.py's.
KERNELS = [k for k in sorted((CSRC / "cuda").rglob("*.cu")) if k.parent.name != "variant"]
OPS = ("cuda", "cuda_stack_forward", "cuda_stack_backward", "recurrence_call")
SOURCES = [*(CSRC / "torch" / f"{name}.cpp" for name in OPS), *KERNELS]
SOURCES += [Path(__file__).with_name(f"{name}.cpp") for name in ("choices", "placements")]
DTYPES = {"float64": 0, "float32": 1, "tf32": 1, "bfloat16": 2, "float16": 3}


# What a test may set about the simulated device for a while, and how it is otherwise.
USUAL = {
    "multiprocessors": 132,
    "max_shared_opt_in": 227 << 10,
    "capability_major": 9,
    "fail_launch": 0,
    "ptx_version": 0,
    "tensor_core_extra_bits": -1,
    "cooperative": 1,
    "multiprocessors_together": 1 << 20,
    "dry": 0,
}
_loaded: list[ctypes.CDLL] = []


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
    _loaded.append(ctypes.CDLL(str(path)))
    _loaded[0].simt_launches.restype = ctypes.c_uint64
    ops.define("simt")
    layer_ops.define("simt")
    gpu.register("simt", *gpu.compiled("simt_kernels"), "CPU")
    whole.PAIRS["simt"] = whole.define("simt", "simt_stack_pair")
    return None


@dataclass(frozen=True)
class Choice:
    """Which family of kernels takes a call, and what it is predicted to take, in clocks."""

    family: str
    step: int
    once: int
    shape: int
    workspace: int  # bytes


def choose(kind: str, T: int, N: int, H: int, P: int | None = None, D=1, backward=False) -> Choice:
    """What csrc/cuda chooses for a call on the simulated device; kind: of DTYPES."""
    sizes = (T, N, D, H, H if P is None else P, P is not None)
    call = (ctypes.c_int64 * 8)(DTYPES[kind], kind == "tf32", *sizes)
    found = (ctypes.c_int64 * 5)()
    _loaded[0].simt_choose(ctypes.c_bool(backward), call, found)
    return Choice(("cluster", "grid", "step")[found[0]], *found[1:])


@contextlib.contextmanager
def prefetched():
    """A list, which has the addresses of all prefetches of the kernels run once this is left."""
    addresses: list[int] = []
    _loaded[0].simt_keep_prefetches(ctypes.c_bool(True))
    try:
        yield addresses
        ask = _loaded[0].simt_prefetches
        ask.restype = ctypes.c_uint64
        room = ask(ctypes.c_uint64(0), None)
        found = (ctypes.c_uint64 * room)()
        ask(ctypes.c_uint64(room), found)
        addresses += list(found)
    finally:
        _loaded[0].simt_keep_prefetches(ctypes.c_bool(False))


def launches() -> int:
    """How many kernels have run so far."""
    return _loaded[0].simt_launches()


def launched_kernels(loaded: ctypes.CDLL | None = None) -> dict[int, tuple[int, int]]:
    """Offset in the library -> most bytes of dynamic shared memory and most threads of a block."""
    loaded = loaded or _loaded[0]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    base = min(int(m[0].split("-")[0], 16) for m in maps if m[-1] == loaded._name)
    address, shared, threads = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_uint64()
    ask = loaded.simt_kernel
    ask.restype = ctypes.c_bool
    found = {}
    while ask(ctypes.c_uint64(len(found)), *map(ctypes.byref, (address, shared, threads))):
        found[address.value - base] = shared.value, threads.value
    return found


def library() -> Path:
    """The library that `load` loaded."""
    return Path(_loaded[0]._name)


@contextlib.contextmanager
def simulated(seed: int = 0, loaded: ctypes.CDLL | None = None, **device: int):
    """Run kernels in the order that a seed draws (0: in turns), on a device with some of `USUAL`
    changed; `loaded`: those of another library than this family's."""
    loaded = loaded or _loaded[0]

    def use(seed, settings):
        loaded.simt_set_seed(ctypes.c_uint64(seed))
        for name, value in settings.items():
            assert loaded.simt_set_device(name.encode(), ctypes.c_int(value)), name

    use(seed, device)
    try:
        yield
    finally:
        use(0, {name: USUAL[name] for name in device})
