"""Each instruction set of this machine, in a process of its own, on the files that test kernels."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import needs_library

from fastlstm import native

pytestmark = needs_library

HERE = Path(__file__).parent
FILES = ["test_kernels_grid.py", "test_math.py", "test_step.py"]
OTHER_MACHINE = 77
RUN = f"""
import sys, pytest
from fastlstm import native
if native.cpu_isa() != sys.argv[1]:
    sys.exit({OTHER_MACHINE})
sys.exit(pytest.main(sys.argv[2:]))
"""


def run_with(isa, *arguments):
    return subprocess.run(
        [sys.executable, "-c", RUN, isa, *arguments],
        env={**os.environ, "FASTLSTM_CPU_ISA": isa},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_each_instruction_set(isa):
    if isa == native.cpu_isa():
        pytest.skip(f"{isa} is what the other tests of this run are on")
    files = [str(HERE / name) for name in FILES]
    done = run_with(isa, "-q", "-x", "-p", "no:cacheprovider", *files)
    if done.returncode == OTHER_MACHINE:
        pytest.skip(f"this machine, {platform.machine()}, has no {isa}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout


def test_a_name_that_is_none_leaves_the_generic_code():
    unknown = subprocess.run(
        [sys.executable, "-c", "from fastlstm import native; print(native.cpu_isa())"],
        env={**os.environ, "FASTLSTM_CPU_ISA": "none such"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert unknown.stdout.strip() == "generic", unknown.stderr
