"""torch.compile on the CPU; test_compile.py has the ops themselves, and inductor."""

import pytest
import torch
from compile_cases import *  # noqa: F403
from compile_cases import (
    test_function_is_one_graph_for_any_T_and_N,
    test_transforms_are_one_graph,
)

from fastlstm.backends import native

for feature, case in {
    "any T and N": test_function_is_one_graph_for_any_T_and_N,
    "compiled func": test_transforms_are_one_graph,
}.items():
    pytest.mark.shows(feature, backend="cpu")(case)


@pytest.fixture
def backend():
    return "cpu" if native.load() is None else "reference"


@pytest.fixture
def device():
    return torch.device("cpu")
