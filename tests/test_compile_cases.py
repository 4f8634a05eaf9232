"""torch.compile on the CPU; test_compile.py has the ops themselves, and inductor."""

import pytest
import torch
from compile_cases import *  # noqa: F403

from fastlstm import native


@pytest.fixture
def backend():
    return "cpu" if native.load() is None else "reference"


@pytest.fixture
def device():
    return torch.device("cpu")
