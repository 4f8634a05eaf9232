"""Forked children of a process that has computed on two threads: none hangs, at any size, and
the numbers are the parent's. A process of its own for each case (fork_cases.py)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fork_cases
import pytest
from pairs import needs_library

TESTS = Path(__file__).parents[1]
SECONDS = 600  # after which a case is taken to hang, on any machine

pytestmark = [
    needs_library,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]


@pytest.mark.parametrize("case", [*fork_cases.CASES, "unknown_pool"])
def test_forked(case):
    process = subprocess.Popen(
        # Python 3.12 warns of a fork beside threads.
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            TESTS / "support" / "fork_cases.py",
            case,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS.parent), *sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its children too
        pytest.fail(f"a process hangs:\n{process.communicate()[0]}")
    assert (process.returncode, printed) == (0, "done\n")
