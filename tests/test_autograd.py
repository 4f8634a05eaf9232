"""autograd's own tools on the CPU."""

import pytest
import torch
from autograd_cases import *  # noqa: F403

from fastlstm.backends import native


@pytest.fixture
def backend():
    return "cpu" if native.load() is None else "reference"


@pytest.fixture
def device():
    return torch.device("cpu")
