"""torch.distributed on GPUs, by NCCL: the checks of distributed_checks.py."""

import distributed_checks
import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    if not torch.cuda.is_available():
        pytest.skip("a dry run has no GPU for this")
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        pytest.skip("torch is built without NCCL")
    world = min(2, torch.cuda.device_count())
    return distributed_checks.run("nccl", world, tmp_path_factory.mktemp("distributed"))


@pytest.mark.parametrize("name", distributed_checks.CHECKS)
def test_processes_are_as_one(name, outcomes):
    assert outcomes[name] == "ok", outcomes[name]
