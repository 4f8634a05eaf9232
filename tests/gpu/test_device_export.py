"""torch.export and AOTInductor on a GPU: the tests of export_cases.py."""

import pytest
from export_cases import (  # noqa: F401
    run_fresh,
    test_any_T_and_N,
    test_compiled_and_loaded_in_a_fresh_process,
    test_saved_and_loaded_in_a_fresh_process,
)

pytestmark = pytest.mark.gpu


@pytest.fixture
def fresh(real_gpu):
    return run_fresh


@pytest.fixture(autouse=True)
def full_precision():
    """In place of the one in conftest.py: torch.export reads torch's older flags for float32, which
    are an error once the newer ones are set. The same kernels are compared here, bit by bit."""
