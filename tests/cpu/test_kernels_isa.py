"""Each instruction set of this machine, in a process of its own, on the files that test kernels."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import needs_library

from fastlstm.backends import native

pytestmark = [needs_library, pytest.mark.slow]

TESTS = Path(__file__).parents[1]
FILES = ["cpu/test_kernels_grid.py", "cpu/test_math.py", "stack/test_step.py"]
FILES += ["stack/test_step_training.py"]
FILES += ["stack/test_inference.py", "nn/test_weight_storage.py", "cpu/test_kernels_products.py"]
FILES += ["cpu/test_batch_invariance.py", "cpu/test_int8_kernels.py"]
BYTE_FILES = ["cpu/test_int8_kernels.py"]
# Of these files, what is the same on all: torch's compiler, schemas, messages.
SAME = "test_compiled or sound or those_of_the_general_way or refused or without_running"
TILE_FILES = ["cpu/test_kernels_tiles.py", "cpu/test_kernels_products.py", "test_precision.py"]
TILE_FILES += ["nn/test_weight_storage.py", "cpu/test_int8_kernels.py"]
RUN = """
import sys, pytest
from fastlstm.backends import native
assert native.cpu_isa() == sys.argv[1]
sys.exit(pytest.main(sys.argv[2:]))
"""
# Nothing is chosen, and nothing kept, where the name is none: so one process asks for several.
WRONG_NAMES = ["none such", "AVX2"]
REFUSED = """
import os, sys
from fastlstm.backends import native
for name in sys.argv[1:]:
    os.environ["FASTLSTM_CPU_ISA"] = name
    try:
        sys.exit(f"{name} is {native.cpu_isa()}")
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


def run(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.fixture(scope="module")
def refused():
    """What is said of each of WRONG_NAMES."""
    done = run(REFUSED, *WRONG_NAMES)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def here(refused):
    """The instruction sets that this machine and this build have."""
    found = re.search("this machine has (.*); name one", refused[0])[1].split(", ")
    return {*found, *(["amx-emulated"] if "avx512" in found else [])}


@pytest.fixture
def passes_on(here, request):
    def check(isa, *names):
        if isa == native.cpu_isa():
            pytest.skip(f"{isa} is what the other tests of this run are on")
        if isa not in here:
            pytest.skip(f"this machine, {platform.machine()}, has no {isa}")
        options = ["-q", "-x", "-rs", "-p", "no:cacheprovider", "-k", f"not ({SAME})"]
        options += ["--all"] * request.config.getoption("--all")
        files = [str(TESTS / name) for name in names]
        done = run(RUN, isa, *options, *files, FASTLSTM_CPU_ISA=isa)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
        assert " passed" in done.stdout and all("a long sweep" in line for line in skipped)

    return check


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_each_instruction_set(isa, passes_on):
    passes_on(isa, *FILES)


def test_pairs_of_bfloat16(passes_on):
    """AVX512-BF16 changes bfloat16 products alone, and must know them from float32's with weights
    stored as bfloat16."""
    names = "cpu/test_kernels_tiles.py", "cpu/test_kernels_products.py", "nn/test_weight_storage.py"
    passes_on("avx512bf16", *names)


@pytest.mark.parametrize("isa", ["avxvnni", "avx512vnni"])
def test_products_of_bytes(isa, passes_on):
    """VNNI changes 8-bit weights alone."""
    passes_on(isa, *BYTE_FILES)


@pytest.mark.parametrize("isa", ["amx-emulated", "amx"])
def test_tiles(isa, passes_on):
    """AMX changes products alone; where it is missing, its kernels run on an emulation of the
    tiles."""
    passes_on(isa, *TILE_FILES)


def test_a_name_that_is_none_is_refused(refused):
    for name, said in zip(WRONG_NAMES, refused, strict=True):
        assert f"FASTLSTM_CPU_ISA={name}: this machine has " in said
        assert "generic; name one of these" in said
