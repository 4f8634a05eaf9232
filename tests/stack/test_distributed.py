"""torch.distributed on two processes of the CPU, by gloo."""

import distributed_checks
import pytest
import torch
from pairs import needs_library

pytestmark = [needs_library, pytest.mark.slow]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    if not torch.distributed.is_available():
        pytest.skip("torch is built without torch.distributed")
    return distributed_checks.run("gloo", 2, tmp_path_factory.mktemp("distributed"))


@pytest.mark.shows("distributed", backend="cpu")
@pytest.mark.parametrize("name", distributed_checks.CHECKS)
def test_two_processes_are_as_one(name, outcomes):
    assert outcomes[name] == "ok", outcomes[name]
