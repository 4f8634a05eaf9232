"""The CPU's kernels for aarch64, as programs by themselves (kernels_alone.cpp, int8_alone.cpp):
made by a cross compiler and run under an emulator, where these are there.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-O2", "-std=c++17", "-fno-math-errno", "-ffp-contract=fast", "-static", "-pthread"]
SOURCES = ["barrier", "cores", "openmp", "team"]
SOURCES += [f"isa/{name}" for name in ("dispatch", "generic", "int8_generic", "int8_dotprod")]
SAYS = {
    "generic": "generic: vectors of 128 bits are NEON's here\n",
    "dotprod": "dotprod: vectors of 128 bits are NEON's here, and SDOT multiplies bytes\n",
}

pytestmark = [
    pytest.mark.sweep,  # a minute of compiling
    pytest.mark.slow,
    pytest.mark.skipif(not CSRC.exists(), reason="tests run outside of a source tree"),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The objects of SOURCES."""
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    folder = tmp_path_factory.mktemp("kernels")
    sources = [CSRC / "cpu" / f"{name}.cpp" for name in SOURCES]
    subprocess.run([COMPILER, *FLAGS, f"-I{CSRC}", "-c", *sources], check=True, cwd=folder)
    return sorted(folder.glob("*.o"))


@pytest.mark.parametrize(
    ("program", "processor", "isa"),
    [
        ("kernels_alone", "max", "dotprod"),
        ("int8_alone", "max", "dotprod"),
        ("int8_alone", "cortex-a72", "generic"),  # which has no SDOT
    ],
)
def test_kernels_for_aarch64(kernels, program, processor, isa, tmp_path):
    made = tmp_path / program
    source = HERE / f"{program}.cpp"
    subprocess.run([COMPILER, *FLAGS, f"-I{CSRC}", source, *kernels, "-o", made], check=True)
    environment = {**os.environ, "FASTLSTM_POISON": "1"}
    command = [EMULATOR, "-cpu", processor, made]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(SAYS[isa])
    assert done.stdout.endswith("all as they should be\n")
