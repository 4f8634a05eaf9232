"""torch.func's transforms and forward mode on the CPU: its kernels, and the reference."""

import pytest
import torch
from pairs import on_cpu
from transform_cases import *  # noqa: F403

# What torch itself warns of in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")


@pytest.fixture(params=[on_cpu, "reference"])
def backend(request):
    return request.param


@pytest.fixture
def device():
    return torch.device("cpu")
