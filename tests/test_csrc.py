"""The folders of csrc include one way, the names of its sources' objects are their own, and those of
AVX-512 compile where the build leaves them out."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "simt"))
import build

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"

pytestmark = pytest.mark.skipif(not CSRC.exists(), reason="tests run outside of a source tree")

# What each folder may include beside itself: folders, or single files.
CUDA = {"core", "cuda", "cuda/device", "cuda/product"}
FOLDERS = {
    "core": set(),
    "cpu": {"core"},
    "cpu/simd": {"core"},
    "cpu/product": {"core", "cpu", "cpu/simd"},
    "cpu/steps": {"core", "cpu", "cpu/simd", "cpu/product"},
    "cpu/variant": {"core", "cpu", "cpu/simd", "cpu/product", "cpu/steps"},
    "cpu/int8": {"core", "cpu", "cpu/simd", "cpu/product", "cpu/steps"},
    "cpu/isa": {
        *("core", "cpu", "cpu/simd", "cpu/product", "cpu/steps", "cpu/variant", "cpu/int8"),
    },
    "cuda": {"core"},
    "cuda/device": {"core", "cuda"},
    "cuda/product": {"core", "cuda", "cuda/device"},
    "cuda/around": CUDA - {"cuda/product"},
    "cuda/step": CUDA,
    "cuda/cluster": CUDA,
    "cuda/grid": {*CUDA, "cuda/cluster"},
    "cuda/projected": {*CUDA, "cuda/cluster", "cuda/grid"},
    "cuda/variant": CUDA,
    "torch": {
        "core",
        "cpu",
        "cpu/isa/choice.h",
        "cuda",
        "cuda/around/around.h",
        "cuda/variant/recurrence.h",
    },
}
# The kernels' other ptx.h, under a plain C++ compiler: tests/simt's.
ELSEWHERE = {"cuda/device/ptx.h": {"simt/ptx.h"}}
SOURCES = sorted(path for path in CSRC.rglob("*.*") if path.suffix in (".h", ".cpp", ".cu"))
# What a build in place has on machines with AVX-512 alone, and the table that names it.
AVX512 = [path for path in SOURCES if re.fullmatch(r".*(avx512|amx).*\.cpp|dispatch\.cpp", path.name)]


def name_of(path):
    return path.relative_to(CSRC).as_posix()


def included(path):
    """What a file includes in quotes, and in angle brackets."""
    text = path.read_text()
    return [set(re.findall(rf"^ *# *include {form}", text, re.M)) for form in ('"(.+)"', "<(.+)>")]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_folders_include_downwards_only(path):
    name = name_of(path)
    folder = name.rpartition("/")[0]
    assert folder in FOLDERS, f"say in FOLDERS what {folder} may include"
    own, others = included(path)
    for header in own - ELSEWHERE.get(name, set()):
        assert (CSRC / header).exists(), f"{header}: includes are relative to csrc"
        allowed = {folder, *FOLDERS[folder]}
        assert allowed & {header, header.rpartition("/")[0]}, f"{header} is not below {folder}"
    if folder != "torch":
        assert not {header for header in others if header.startswith(("torch/", "ATen", "c10"))}


def test_folders_have_no_circle():
    rest = {folder: {below for below in allowed if below in FOLDERS} for folder, allowed in FOLDERS.items()}
    while rest:
        bottom = [folder for folder, below in rest.items() if not below & rest.keys()]
        assert bottom, f"a circle among {sorted(rest)}"
        for folder in bottom:
            del rest[folder]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_says_what_it_is_for(folder):
    assert (CSRC / folder / "README.md").read_text().startswith(f"# csrc/{folder}\n")


def test_objects_do_not_share_a_name():
    """An object lies where its source does, and is named without the source's ending."""
    objects = [path.with_suffix("") for path in SOURCES if path.suffix in (".cpp", ".cu")]
    assert len(set(objects)) == len(objects)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere these sources are empty")
@pytest.mark.parametrize("emulated", [False, pytest.param(True, marks=pytest.mark.sweep)], ids=["as_built", "emulated"])
@pytest.mark.parametrize("path", AVX512, ids=name_of)
def test_kernels_of_avx512_compile(path, emulated):
    """Without their machine code, which takes minutes: types, static_asserts and templates, with all
    that is instantiated. A change of a loop that AVX-512 shares shows on any processor."""
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    if emulated and "clang" in build.compiler_version():
        pytest.skip("the stand-ins are for GCC")
    flags = ["-std=c++17", "-fsyntax-only", f"-I{CSRC}"]
    flags += ["-DFASTLSTM_EMULATE_AVX512", "-Wno-psabi"] if emulated else []
    done = subprocess.run([compiler, *flags, path], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == 0, "\n".join(errors) or done.stderr


def test_the_device_that_a_choice_makes_current_is_torchs_own_again():
    """csrc/cuda makes a call's device current: what calls it from torch is in a guard that takes
    this back."""
    asking = {}
    for path in SOURCES:
        if path.parent.name == "torch":
            for part in re.split(r"\n(?=\S)", path.read_text()):  # functions, classes
                if re.search(r"cuda::(choose|variant_\w+)\(", part):
                    asking.setdefault(path.name, []).append(part)
    assert {"cuda.cpp", "cuda_stack.h", "cuda_variant.cpp"} <= set(asking)
    for name, parts in asking.items():
        for part in parts:
            assert re.search(r"\b(OnDevice|CudaCall)\b", part), (name, part)
