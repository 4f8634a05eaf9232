"""Runs `triton_interpreted.py`, all tests of it, in one process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm import triton_kernels

INNER = Path(__file__).with_name("triton_interpreted.py")


@pytest.mark.skipif(triton_kernels.available() is not None, reason=str(triton_kernels.available()))
def test_the_kernels_in_the_interpreter():
    """TRITON_INTERPRET has to be set before Triton is imported, which another test may have done
    here. On a failure, the output is that of the inner run."""
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            "--durations=8",
            INNER,
        ],
        cwd=INNER.parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "FASTLSTM_TRITON_WAY": ""},
        capture_output=True,
        text=True,
    )
    if "interprets no loops" in found.stdout:
        pytest.skip(found.stdout[found.stdout.index("SKIPPED") :].splitlines()[0])
    print(found.stdout[-20000:], found.stderr[-5000:])
    assert found.returncode == 0, "see the inner run's output"
    assert " passed" in found.stdout and " skipped" not in found.stdout
