"""torch.func's transforms and forward mode on the CPU."""

import pytest
import torch
from transform_cases import (  # noqa: F401
    test_batched_gradients_of_a_gradient,
    test_cell_and_step,
    test_empty,
    test_first_derivatives,
    test_forward_mode_of_autograd,
    test_functionalize,
    test_functionalize_of_modules_and_of_transforms,
    test_low_precision,
    test_second_derivatives,
    test_tangents_of_the_tape,
    test_variants,
)
from vmap_cases import (  # noqa: F401
    test_dropout_in_vmap,
    test_ensembles,
    test_gradients_through_vmap,
    test_meta_learning,
    test_per_sample_gradients,
    test_per_sample_gradients_of_a_module,
    test_vmap_over_inputs_is_one_call,
)

from fastlstm.backends import native


@pytest.fixture
def backend():
    return "cpu" if native.load() is None else "reference"


@pytest.fixture
def device():
    return torch.device("cpu")
