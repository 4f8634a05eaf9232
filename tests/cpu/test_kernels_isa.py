"""Each instruction set of this machine, in a process of its own, on the files that test kernels."""

import os
import platform
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
OTHER_MACHINE = 77
RUN = f"""
import sys, pytest
from fastlstm.backends import native
try:
    native.cpu_isa()
except RuntimeError:
    sys.exit({OTHER_MACHINE})
assert native.cpu_isa() == sys.argv[1]
sys.exit(pytest.main(sys.argv[2:]))
"""


def run_with(isa, *arguments):
    return subprocess.run(
        [sys.executable, "-c", RUN, isa, *arguments],
        env={**os.environ, "FASTLSTM_CPU_ISA": isa},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def passes_on(isa, *names):
    if isa == native.cpu_isa():
        pytest.skip(f"{isa} is what the other tests of this run are on")
    files = [str(TESTS / name) for name in names]
    done = run_with(isa, "-q", "-x", "-p", "no:cacheprovider", "-k", f"not ({SAME})", *files)
    if done.returncode == OTHER_MACHINE:
        pytest.skip(f"this machine, {platform.machine()}, has no {isa}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_each_instruction_set(isa):
    passes_on(isa, *FILES)


def test_pairs_of_bfloat16():
    """AVX512-BF16 changes bfloat16 products alone."""
    passes_on("avx512bf16", "cpu/test_kernels_tiles.py", "cpu/test_kernels_products.py")


@pytest.mark.parametrize("isa", ["avxvnni", "avx512vnni"])
def test_products_of_bytes(isa):
    """VNNI changes 8-bit weights alone."""
    passes_on(isa, *BYTE_FILES)


@pytest.mark.parametrize("isa", ["amx-emulated", "amx"])
def test_tiles(isa):
    """AMX changes products alone; where it is missing, its kernels run on an emulation of the
    tiles."""
    passes_on(isa, *TILE_FILES)


@pytest.mark.parametrize("name", ["none such", "AVX2"])
def test_a_name_that_is_none_is_refused(name):
    run = "from fastlstm.backends import native; print(native.cpu_isa())"
    done = subprocess.run(
        [sys.executable, "-c", run],
        env={**os.environ, "FASTLSTM_CPU_ISA": name},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert f"FASTLSTM_CPU_ISA={name}: this machine has " in done.stderr
    assert "generic; name one of these" in done.stderr
