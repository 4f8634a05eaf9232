"""Autocast in use, on the CPU."""

import pytest
import torch
from autocast_cases import (  # noqa: F401
    test_a_stream_is_one_of_the_low_dtype,
    test_backward_inside_and_outside,
    test_cells_add_up_in_float32,
    test_gradient_penalty,
    test_loss_scaling_with_float16,
    test_switched_off_inside,
    test_weights_that_change_inside_are_seen,
)
from pairs import on_cpu


@pytest.fixture
def device():
    return torch.device("cpu")


@pytest.fixture(params=[on_cpu, "reference"])
def backend(request):
    return request.param
