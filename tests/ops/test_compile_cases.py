"""torch.compile on the CPU; test_compile.py has the ops themselves, and inductor."""

import pytest
import torch
from compile_cases import (  # noqa: F401
    allow_rnn,
    fresh_compiler,
    test_cell_and_step,
    test_function_in_training,
    test_function_is_one_graph_for_any_T_and_N,
    test_model_under_default_compile,
    test_module_is_one_graph_for_any_T_and_N,
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
