"""What the tests of the benchmarks share: a description of the machine, made once."""

from functools import cache

import pytest

from benchmarks.common import machine


@pytest.fixture(scope="session", autouse=True)
def described_once():
    """A results file names what `python -m fastlstm` says, which each run asks in a new process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "fastlstm_report", cache(machine.fastlstm_report))
        yield
