"""torch.export and AOTInductor on a GPU: the tests of export_cases.py."""

import pytest
from export_cases import *  # noqa: F403
from export_cases import run_fresh

pytestmark = pytest.mark.gpu


@pytest.fixture
def fresh(real_gpu):
    return run_fresh
