"""Forked children of a process that has computed on two threads: none hangs, at any size, and
the numbers are the parent's (fork_cases.py). Several cases one after the other in a process, and
each in a process of its own."""

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


# What prefork does is in the first two; what a pool of Python's and a DataLoader do, in by_c (more
# forks of one parent) and in chosen (another thread count in the child).
SEVERAL = ["twice", "from_a_thread", "by_c", "chosen"]


@pytest.mark.parametrize(
    "cases",
    [
        SEVERAL,
        ["unknown_pool"],
        *(pytest.param([case], marks=pytest.mark.sweep) for case in fork_cases.CASES),
    ],
    ids="-".join,
)
def test_forked(cases):
    process = subprocess.Popen(
        # Python 3.12 warns of a fork beside threads.
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            TESTS / "support" / "fork_cases.py",
            *cases,
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
    assert (process.returncode, printed) == (0, "".join(f"{case}\n" for case in cases))
