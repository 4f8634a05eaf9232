"""What CUDA kernels take of a multiprocessor: read from a compiled library, and from launches that
tests/simt notes without running them."""

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "simt"))
import family
import variant_family

from fastlstm.stack import whole


@dataclass
class Usage:
    """Of one kernel for one architecture, by thread and block."""

    registers: int  # as a GPU allots them, eight at a time
    local: int  # bytes that are not in registers: spilled, or arrays that could not be held there
    static_shared: int  # bytes


@dataclass
class Compiled:
    """What a library has: by architecture and kernel what that takes, and the version of its PTX,
    which tells compilers apart (None without PTX)."""

    ptx: str | None = None
    kernels: dict[str, dict[str, Usage]] = field(default_factory=dict)


def readable(demangled: str) -> str:
    """A kernel's name and template arguments, without namespaces and parameters."""
    text = re.sub(r"\((?:int|bool)\)", "", demangled.removeprefix("void "))
    return re.sub(r"\b(?:\w+::)+|\s+(?=>)", "", text.partition("(")[0])


def read_dump(text: str) -> Compiled:
    """Of what cuobjdump --dump-resource-usage prints, demangled."""
    found, architecture, kernel, reserved, version = Compiled(), "", "", 0, ""
    for line in text.splitlines():
        if match := re.match(r"arch = (sm_(\d+)\w*)", line):
            architecture = match[1]
            reserved = 1024 if int(match[2]) >= 90 else 0  # the system's, in every block
        elif match := re.match(r"code version = \[(\d+),(\d+)\]", line):
            version = f"{match[1]}.{match[2]}"
        elif line.startswith("ptxasOptions"):
            found.ptx = version  # only PTX has this line; machine code has versions of its own
        elif match := re.match(r" *Function (.*):$", line):
            kernel = readable(match[1])
        elif match := re.match(r" *REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            static = max(shared - reserved, 0)  # none is counted where a kernel has no other
            usage = Usage((registers + 7) // 8 * 8, stack + local, static)
            found.kernels.setdefault(architecture, {})[kernel] = usage
    return found


def find_cuobjdump() -> str | None:
    """From a CUDA toolkit, or from Triton's wheel."""
    places = [os.environ.get("PATH", "")]
    if home := os.environ.get("CUDA_HOME"):
        places.append(os.path.join(home, "bin"))
    if (spec := importlib.util.find_spec("triton")) and spec.origin:
        places.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join(places))


def read_library(path: Path | None) -> Compiled | str:
    """What the library's kernels take, or why that cannot be told here."""
    if path is None:
        return "the compiled library was not built"
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        return "no cuobjdump; it comes with the CUDA toolkit, and with `pip install triton`"
    if shutil.which("c++filt") is None:
        return "no c++filt (binutils)"
    command = [cuobjdump, "--dump-resource-usage", path]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    named = subprocess.run(["c++filt"], input=dump, capture_output=True, text=True, check=True)
    compiled = read_dump(named.stdout)
    return compiled if compiled.kernels else "the library was built without CUDA"


def launch_everything() -> None:
    """Launches every kernel, in a simulation that runs none: sizes for every shape and tile."""
    on_chip = [(1, H, None) for H in range(64, 2112, 64)]
    on_chip += [(1, *HP) for HP in ((50, 40), (100, 50), (200, 100), (1024, 512), (1100, 1000))]
    in_steps = [(N, 75, 70) for N in (1, 40, 131)] + [(1100, 1536, None), (1100, 1100, 1000)]
    shapes = [f"{family}:{number}" for family in ("cluster", "grid") for number in range(6)]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        launch_around(dtype)
        for tf32 in (False, True) if dtype == torch.float32 else (False,):
            for name, sizes in itertools.product(shapes if dtype != torch.float64 else (), on_chip):
                with mock.patch.dict(os.environ, FASTLSTM_CUDA_KERNELS=name):
                    launch(*sizes, dtype, tf32)
            with mock.patch.dict(os.environ, FASTLSTM_CUDA_KERNELS="step"):
                for sizes in in_steps:
                    for multiprocessors in (1, 4, 132, 10_000):
                        launch(*sizes, dtype, tf32, multiprocessors=multiprocessors)


def launch(N: int, H: int, P: int | None, dtype, tf32: bool, **device: int) -> None:
    """A step forward and backward, in a simulation that runs no kernel."""

    def tensor(*shape):
        return torch.empty(shape, dtype=dtype)

    outputs, run = P or H, torch.ops.fastlstm
    states = [tensor(1, N, outputs), tensor(1, N, H)]
    weights = [tensor(1, 4 * H, outputs), None if P is None else tensor(1, P, H)]
    with family.simulated(dry=1, **device):
        output, _, _, cells, gates = run.simt_kernels_forward(
            tensor(1, N, 1, 4 * H), *states, *weights, None, None, True, True, tf32
        )
        run.simt_kernels_backward(output, *[None] * 4, *states, *weights, cells, gates, None, None, False, tf32)


def launch_around(dtype) -> None:
    """What stands around a recurrence (csrc/cuda/around), in a call of a projected layer with all
    that there may be, likewise."""
    T, N, I, H, P = 2, 3, 4, 8, 5
    x, h0, c0 = (torch.empty(s, dtype=dtype) for s in ((T, N, I), (1, N, P), (1, N, H)))
    shapes = ((4 * H, I), (4 * H, P), (4 * H,), (4 * H,), (P, H))
    weights = [torch.empty(s, dtype=dtype) for s in shapes]
    pair, needs = whole.PAIRS["simt"], [True] * 8
    masks = torch.full((N,), T), torch.zeros(T, N, dtype=torch.bool), None
    sizes = 1, False, False, False
    with family.simulated(dry=1):
        output, _, _, *tape = pair.forward(x, h0, c0, weights, *masks, *sizes, False, False, needs)
        matrices = [weights[0], weights[1], weights[4]]
        pair.backward(output, None, None, None, x, h0, c0, matrices, output, tape, *masks, *sizes, needs)


def launch_variants() -> dict[int, tuple[int, int]]:
    """As `launch_everything`, for the variants; `family.launched_kernels` of their library."""
    assert variant_family.load() is None
    run, library = torch.ops.fastlstm, variant_family.library()
    for dtype, tf32 in ((t, False) for t in (torch.float64, torch.bfloat16, torch.float16)):
        _launch_variant(run, library, dtype, tf32)
    for tf32 in (False, True):
        _launch_variant(run, library, torch.float32, tf32)
    return family.launched_kernels(library)


def _launch_variant(run, library, dtype, tf32) -> None:
    H, P = 75, 70
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def tensor(*shape):
        return torch.empty(shape, dtype=dtype)

    for N, multiprocessors in itertools.product((1, 40, 131), (1, 4, 132, 10_000)):
        given = [tensor(1, N, P), tensor(1, N, H), tensor(1, 4 * H, P), tensor(1, P, H), None]
        given += [tensor(1, 4 * H), tensor(1, H), None]
        with family.simulated(0, library, dry=1, multiprocessors=multiprocessors):
            _, _, _, cells, gates = run.simt_kernels_variant_forward(
                tensor(1, N, 1, 4 * H), *given, *[None] * 3, 0.0, 0.0, 0, 0, True, True, tf32
            )
            scale = torch.empty((1, N, 1, 1), dtype=wide)
            hats = [gates.to(wide), scale, cells, scale]
            run.simt_kernels_variant_loop(
                *[None] * 4, *given, cells, gates, cells, *hats, *[None] * 3, 0.0, 0.0, 0, 0, False,
                tf32,
            )  # fmt: skip


@cache
def read_launches() -> dict[str, int] | str:
    """Kernel -> most bytes of dynamic shared memory that a block of it is launched with; or why
    that cannot be told here."""
    if (reason := family.load()) is not None:
        return reason
    if shutil.which("nm") is None:
        return "no nm (binutils)"
    launch_everything()
    found = named_launches(family.library(), family.launched_kernels())
    variants = launch_variants()
    # Kernels that copy weights are in both libraries.
    for name, shared in named_launches(variant_family.library()._name, variants).items():
        found[name] = max(shared, found.get(name, 0))
    return found


def named_launches(library, launched) -> dict[str, int]:
    """`family.launched_kernels` by name."""
    listing = subprocess.run(["nm", "-C", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    names = {}
    for line in listing.splitlines():
        address, _, name = line.split(" ", 2)
        names[int(address, 16)] = readable(name)
    return {names[at]: shared for at, (shared, _) in launched.items()}
