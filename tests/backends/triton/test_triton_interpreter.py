"""Runs `triton_interpreted*.py` and `features_interpreted.py`, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm.backends import triton as triton_kernels

HERE = Path(__file__).parent
INNER = [
    "triton_interpreted.py",
    "triton_interpreted_variants.py",
    pytest.param("features_interpreted.py", marks=pytest.mark.shows()),  # what its tests show
]


@pytest.mark.slow
@pytest.mark.skipif(triton_kernels.available() is not None, reason=str(triton_kernels.available()))
@pytest.mark.parametrize("inner", INNER)
def test_the_kernels_in_the_interpreter(inner, request):
    """TRITON_INTERPRET has to be set before Triton is imported, which another test may have done
    here. On a failure, the output is that of the inner run, which leaves out what this one does."""
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
            *["--all"] * request.config.getoption("--all"),
            HERE / inner,
        ],
        cwd=HERE.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "FASTLSTM_TRITON_WAY": ""},
        capture_output=True,
        text=True,
    )
    if "interprets no loops" in found.stdout:
        pytest.skip(found.stdout[found.stdout.index("SKIPPED") :].splitlines()[0])
    skipped = [line for line in found.stdout.splitlines() if line.startswith("SKIPPED")]
    print(found.stdout[-20000:], found.stderr[-5000:])
    assert found.returncode == 0, "see the inner run's output"
    assert " passed" in found.stdout and all("a long sweep" in line for line in skipped)
