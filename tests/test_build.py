"""The compiled library keeps to the stable ABI; the build's switches and packages are right."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import fastlstm
from fastlstm import _version
from fastlstm.backends import native

ROOT = Path(__file__).parents[1]
RUN = ROOT / "run"

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="tests run outside of a source tree")


INCLUDE = Path(torch.__file__).parent / "include"

# What csrc names of torch's headers: all of it in those of torch 2.10, the oldest that is promised.
# Newer headers hide by TORCH_TARGET_VERSION what is newer in the library, but not every macro.
TORCH_NAMES = """
    AtenTensorHandle StableIValue TORCH_ABI_VERSION TORCH_BOX TORCH_ERROR_CODE_CHECK
    STABLE_TORCH_LIBRARY_FRAGMENT STABLE_TORCH_LIBRARY_IMPL STD_TORCH_CHECK
    aoti_torch_create_tensor_from_blob aoti_torch_device_type_cpu aoti_torch_dtype_bfloat16
    aoti_torch_dtype_float16 aoti_torch_dtype_float32 aoti_torch_dtype_float64
    aoti_torch_dtype_uint8 aoti_torch_empty_strided aoti_torch_get_current_cuda_stream
    aoti_torch_get_device_index aoti_torch_get_device_type torch_call_dispatcher
    torch::headeronly::IntHeaderOnlyArrayRef torch::headeronly::ScalarType torch::stable::Tensor
    torch::stable::accelerator::DeviceGuard torch::stable::contiguous torch::stable::copy_
    torch::stable::detail::from torch::stable::detail::to torch::stable::get_num_threads
    torch::stable::narrow torch::stable::new_empty torch::stable::parallel_for
    torch::stable::sum_out torch::stable::transpose torch::stable::unsqueeze
    torch::stable::zero_
"""


@pytest.fixture(scope="module")
def library():
    path = native.library_path()
    if path is None:
        pytest.skip("the compiled library was not built")
    return path


# What may ask for a glibc above 2.28, that of manylinux_2_28, where a newer one built the library:
# 2.34 took in libdl, libpthread and librt under a new version (CUDA's static runtime asks for many of
# theirs); newer headers ask for the last two.
OLD_IN_NEW_GLIBC = (
    r"dl(m?open|v?sym|close|error|addr)|pthread_\w+|sem_\w+|shm_(open|unlink)|__libc_single_threaded|__isoc23_\w+"
)


def versioned_symbols(library, which):
    """Dynamic symbols of the library, demangled, with their versions."""
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    listing = subprocess.run(["nm", "-D", "-C", which, library], capture_output=True, text=True, check=True)
    names = [line[17:].split(" ", 1)[1] for line in listing.stdout.splitlines()]
    assert names, listing.stderr
    return names


def symbols(library, which):
    return [name.split("@")[0] for name in versioned_symbols(library, which)]


def test_library_needs_no_python_symbol(library):
    needed = symbols(library, "--undefined-only")
    assert [name for name in needed if re.match(r"_?Py[A-Z_]", name)] == []


def test_library_needs_no_cxx_symbol_of_torch(library):
    needed = symbols(library, "--undefined-only")
    assert [name for name in needed if re.search(r"(?<![\w:])(at|c10|torch)::", name)] == []


def test_library_needs_no_glibc_above_that_of_the_wheels(library):
    needed = [
        (name, tuple(map(int, version.split("."))))
        for name, _, version in (
            symbol.rpartition("@GLIBC_") for symbol in versioned_symbols(library, "--undefined-only")
        )
        if name
    ]
    if not needed:
        pytest.skip("the library names no versions of glibc's symbols")
    newer = [name.rstrip("@") for name, version in needed if version > (2, 28)]
    assert [name for name in newer if not re.fullmatch(OLD_IN_NEW_GLIBC, name)] == []


def test_library_needs_only_the_declared_stable_shim(library):
    include = INCLUDE / "torch" / "csrc"
    headers = [
        include / "stable" / "c" / "shim.h",
        include / "inductor" / "aoti_torch" / "c" / "shim.h",
        include / "inductor" / "aoti_torch" / "generated" / "c_shim_aten.h",
    ]
    if not all(header.exists() for header in headers):
        pytest.skip("this torch installation has no headers")
    declared = set(re.findall(r"\w+", "".join(header.read_text() for header in headers)))
    needed = [n for n in symbols(library, "--undefined-only") if re.match(r"(aoti_)?torch_", n)]
    assert needed
    assert set(needed) - declared == set()


def test_sources_name_nothing_newer_than_the_oldest_torch():
    """A name that is new here is for TORCH_NAMES if torch 2.10 has it, else csrc defines it."""
    text = "".join(file.read_text() for file in sorted((ROOT / "csrc" / "torch").glob("*.[ch]*")))
    own = set(re.findall(r"#define (\w+)", text))
    words = r"\b(?:(?:STABLE|STD|TORCH)_\w+|(?:aoti_)?torch_\w+|Aten\w+|StableIValue)"
    used = set(re.findall(words + r"|\btorch(?:::\w+)+", text)) - own
    assert used == set(TORCH_NAMES.split())


def test_headers_have_what_sources_name():
    """Of this torch: where it is 2.10, that TORCH_NAMES is right."""
    parts = ("csrc/stable", "csrc/inductor/aoti_torch/c", "headeronly")
    headers = [file for part in parts for file in (INCLUDE / "torch" / part).rglob("*.h")]
    if not headers:
        pytest.skip("this torch installation has no headers")
    declared = set(re.findall(r"\w+", "".join(file.read_text() for file in headers)))
    named = {name.rpartition("::")[2] for name in TORCH_NAMES.split()}
    assert named - declared == set()


def test_library_exports_nothing_of_its_own(library):
    exported = symbols(library, "--defined-only")
    assert [name for name in exported if name.startswith("PyInit") or "fastlstm" in name] == []


def test_library_name_says_abi3(library):
    assert library.name == "_C.abi3.so"


def test_version_stands_once():
    assert fastlstm.__version__ == _version.__version__
    assert f"## [{fastlstm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def setup_py(*arguments, cwd=ROOT, **environment):
    """Run setup.py, by default as a build without a compiler, which is quick and needs no torch."""
    inherited = {k: v for k, v in os.environ.items() if k != "CXX" and not k.startswith("FASTLSTM_")}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=cwd,
        env={**inherited, "FASTLSTM_CPP": "0", **environment},
        capture_output=True,
        text=True,
    )


def test_setup_py_reads_the_version():
    assert setup_py("--version").stdout.split()[-1] == fastlstm.__version__


def test_setup_py_without_a_compiler_says_so(tmp_path):
    found = setup_py("--version", FASTLSTM_CPP="auto", PATH=str(tmp_path))
    assert "no C++ compiler found: nothing is compiled, pure Python only" in found.stdout
    assert found.returncode == 0


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"FASTLSTM_CPP": "1", "PATH": ""}, "FASTLSTM_CPP=1, but no C++ compiler was found"),
        ({"FASTLSTM_CPP": "yes"}, "FASTLSTM_CPP='yes': expected auto, 0 or 1"),
    ],
    ids=["no-compiler", "unknown-value"],
)
def test_setup_py_refuses(environment, said):
    found = setup_py("--version", **environment)
    assert found.returncode != 0
    assert said in found.stderr


def test_setup_py_refuses_a_setuptools_that_makes_no_wheels(tmp_path):
    (tmp_path / "setuptools.py").write_text('__version__ = "65.5.0"\ndef setup(**given): pass\n')
    found = setup_py("dist_info", PYTHONPATH=str(tmp_path))
    assert found.returncode != 0
    assert "setuptools 65.5.0 cannot make a wheel by itself: pip install" in found.stderr


def test_no_wheel_has_emulated_kernels(tmp_path):
    found = setup_py("-q", "bdist_wheel", "-d", str(tmp_path), FASTLSTM_EMULATE_AVX512="1")
    assert found.returncode != 0
    assert "FASTLSTM_EMULATE_AVX512=1 is for tests" in found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the source tree, with a compiled library in it that some earlier build left."""
    tree = tmp_path_factory.mktemp("packages") / "tree"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "results", "__pycache__", "*.so", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=left_out)
    (tree / "fastlstm" / "_C.abi3.so").write_bytes(b"")
    return tree


def test_sdist_holds_every_source(tree, tmp_path):
    built = setup_py("-q", "sdist", "-d", str(tmp_path), cwd=tree)
    assert built.returncode == 0, built.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    rooms = ("csrc", "fastlstm", "tests", "benchmarks", "examples", "docs")
    # .cpp .cu .h .md .py .png
    sources = {p for room in rooms for p in (tree / room).rglob("*.[chmp]*")}
    assert {source.relative_to(tree).as_posix() for source in sources} - held == set()
    assert {"run", "setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"} <= held
    assert [name for name in held if name.endswith(".so")] == []


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for a compiler is a shell script")
def test_kernels_compile_without_torch(tree, tmp_path):
    """./run begins with them while pip brings torch; the build then finds them made."""
    if shutil.which("ninja", path=os.pathsep.join([os.environ["PATH"], sysconfig.get_path("scripts")])) is None:
        pytest.skip("there is no ninja")
    compiler = tmp_path / "cxx"
    compiler.write_text('#!/bin/sh\nfor word; do [ "$last" != -o ] || echo "$*" >"$word"; last=$word; done\n')
    compiler.chmod(0o755)
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('torch')\n")
    given = {"FASTLSTM_CPP": "1", "FASTLSTM_AVX512": "1", "CXX": str(compiler), "PYTHONPATH": str(tmp_path)}
    done = setup_py("kernels", cwd=tree, **given)
    assert done.returncode == 0, done.stderr
    (csrc,) = (tree / "build").glob("temp*/csrc")
    made = {path.relative_to(csrc).with_suffix(".cpp") for path in csrc.rglob("*.o")}
    assert made == {path.relative_to(tree / "csrc") for path in (tree / "csrc/cpu").rglob("*.cpp")}
    assert "torch" not in (csrc / "cpu/team.o").read_text().lower().replace(str(tree).lower(), "")
    assert "no work to do" in setup_py("kernels", cwd=tree, **given).stdout
    # Of CXX a compiler's name may be the second word.
    (csrc / "cpu/team.o").unlink()
    done = setup_py("kernels", cwd=tree, **given | {"CXX": f"env {compiler}"})
    assert done.returncode == 0, done.stdout
    assert (csrc / "cpu/team.o").exists()


def test_pure_python_wheel_serves_every_platform(tree, tmp_path):
    built = setup_py("-q", "bdist_wheel", "-d", str(tmp_path), cwd=tree)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"fastlstm-{fastlstm.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
    modules = {p.relative_to(tree).as_posix() for p in (tree / "fastlstm").rglob("*.py")}
    assert modules - set(held) == set()
    assert [name for name in held if not name.startswith("fastlstm")] == []
    assert [name for name in held if name.endswith(".so")] == []


def run(*arguments, **environment):
    return subprocess.run(
        [RUN, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)], ids=["none", "help", "--help"])
def test_run_help_names_every_command(arguments):
    shown = run(*arguments)
    assert shown.returncode == 0
    commands = re.findall(r"^    (\w+)\)", RUN.read_text(), re.MULTILINE)
    assert {"test", "bench", "demo"} <= set(commands)
    for command in commands:
        assert re.search(rf"^  {command}\b", shown.stdout, re.MULTILINE), command


def test_run_refuses_an_unknown_command():
    refused = run("tset")
    assert refused.returncode == 1
    assert "unknown command: tset" in refused.stderr


def test_run_refuses_an_interpreter_that_is_none():
    refused = run("info", FASTLSTM_PYTHON="/nowhere/python")
    assert refused.returncode == 1
    assert "FASTLSTM_PYTHON=/nowhere/python is not a Python >= 3.10" in refused.stderr


@pytest.mark.skipif(shutil.which("flock") is None, reason="without flock ./run locks nothing")
def test_run_gpu_holds_the_lock_while_it_makes_an_interpreter(tmp_path):
    """For kernels compile meanwhile, as they may for another ./run."""
    shutil.copy2(RUN, tmp_path)
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$2" in *sys*) exit 0 ;; *torch*) exit 1 ;; esac\n'  # is new enough, and has no torch
        "flock -n build/run.lock true && echo free >&2 || echo held >&2\n"
        "exit 1\n"
    )
    python.chmod(0o755)
    given = os.environ | {"FASTLSTM_PYTHON": str(python)}
    done = subprocess.run([tmp_path / "run", "gpu"], env=given, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "held"
