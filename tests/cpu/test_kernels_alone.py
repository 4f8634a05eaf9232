"""The CPU's kernels as a program by themselves (kernels_alone.cpp): of this machine, and for
aarch64 by a cross compiler and under an emulator, where these are there.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "simt"))
import build  # noqa: E402

CSRC = TESTS.parent / "csrc"
SOURCES = ["barrier", "cores", "openmp", "team", "isa/dispatch", "isa/avx2", "isa/generic"]

pytestmark = [
    pytest.mark.sweep,  # a minute of compiling each
    pytest.mark.slow,
    pytest.mark.skipif(not CSRC.exists(), reason="tests run outside of a source tree"),
]


@pytest.mark.parametrize("machine", ["here", "aarch64"])
def test_kernels_alone(machine, tmp_path):
    compiler, emulator = build.compiler(), []
    if machine == "aarch64":
        compiler = shutil.which("aarch64-linux-gnu-g++")
        if compiler is None or shutil.which("qemu-aarch64") is None:
            pytest.skip("there is no aarch64-linux-gnu-g++, or no qemu-aarch64")
        emulator = ["qemu-aarch64"]
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    program = tmp_path / "kernels_alone"
    flags = ["-O2", "-std=c++17", "-fno-math-errno", "-ffp-contract=fast", f"-I{CSRC}"]
    flags += ["-DFASTLSTM_WITHOUT_AVX512", "-static", "-pthread"]
    sources = [TESTS / "cpu" / "kernels_alone.cpp", *(CSRC / "cpu" / f"{s}.cpp" for s in SOURCES)]
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(program)], check=True)
    environment = {**os.environ, "FASTLSTM_CPU_ISA": "generic", "FASTLSTM_POISON": "1"}
    done = subprocess.run(
        [*emulator, str(program)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all as they should be\n")
