"""Bitwise repetition on a GPU: the tests of determinism_cases.py."""

import pytest
from determinism_cases import (  # noqa: F401
    test_again_and_under_the_deterministic_setting,
    test_forked_and_checkpointed,
)

pytestmark = pytest.mark.gpu
