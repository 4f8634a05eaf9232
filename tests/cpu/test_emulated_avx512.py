"""The instructions of AVX-512, as a build with FASTLSTM_EMULATE_AVX512 has them and as the machine
does, against the same in plain C++."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "simt"))
import build  # noqa: E402

CSRC = TESTS.parent / "csrc"
OTHER_MACHINE = 77

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine is not x86-64"),
    pytest.mark.skipif(not CSRC.exists(), reason="tests run outside of a source tree"),
]


@pytest.mark.parametrize("emulated", [True, False], ids=["emulated", "real"])
def test_instructions(emulated, tmp_path):
    compiler = build.compiler()
    if compiler is None or "clang" in build.compiler_version():
        pytest.skip("there is no GCC")
    program = tmp_path / "stand_ins"
    # Contracted, the sums that are expected would not be those of the instructions.
    flags = ["-O1", "-std=c++17", "-Wno-psabi", "-ffp-contract=off", f"-I{CSRC}"]
    flags += ["-DFASTLSTM_EMULATE_AVX512"] if emulated else []
    command = [compiler, *flags, str(TESTS / "cpu" / "stand_ins.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    if done.returncode == OTHER_MACHINE:
        pytest.skip("this machine does not have the instructions")
    assert (done.returncode, done.stdout) == (0, "all as they should be\n")
