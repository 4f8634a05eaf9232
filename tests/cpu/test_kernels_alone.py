"""The CPU's kernels for aarch64, as a program by themselves (kernels_alone.cpp): made by a cross
compiler and run under an emulator, where these are there.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SOURCES = ["barrier", "cores", "openmp", "team", "isa/dispatch", "isa/generic", "isa/int8_generic"]

pytestmark = [
    pytest.mark.sweep,  # a minute of compiling
    pytest.mark.slow,
    pytest.mark.skipif(not CSRC.exists(), reason="tests run outside of a source tree"),
]


def test_kernels_for_aarch64(tmp_path):
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    program = tmp_path / "kernels_alone"
    flags = ["-O2", "-std=c++17", "-fno-math-errno", "-ffp-contract=fast", "-static", "-pthread"]
    sources = [HERE / "kernels_alone.cpp", *(CSRC / "cpu" / f"{name}.cpp" for name in SOURCES)]
    subprocess.run([COMPILER, *flags, f"-I{CSRC}", *sources, "-o", program], check=True)
    environment = {**os.environ, "FASTLSTM_POISON": "1"}
    done = subprocess.run([EMULATOR, program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("generic: vectors of 128 bits are NEON's here\n")
    assert done.stdout.endswith("all as they should be\n")
