"""Bitwise repetition on a GPU: the tests of test_determinism.py with the GPU's backends."""

import pytest
from test_determinism import (  # noqa: F401
    test_again_and_under_the_deterministic_setting,
    test_forked_and_checkpointed,
)

pytestmark = pytest.mark.gpu
