"""autograd's own tools on the CPU."""

import pytest
import torch
from autograd_cases import (  # noqa: F401
    test_anomaly_mode,
    test_checkpoint,
    test_first_derivatives_of_both_modes,
    test_gradient_penalty_trains_as_nn_lstm_does,
    test_hooks_see_what_they_see_of_nn_lstm,
    test_saved_tensors_may_be_moved_away,
    test_second_derivatives,
    test_vectorised_jacobian_of_autograd,
)

from fastlstm.backends import native


@pytest.fixture
def backend():
    return "cpu" if native.load() is None else "reference"


@pytest.fixture
def device():
    return torch.device("cpu")
