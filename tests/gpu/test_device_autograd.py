"""autograd's own tools on a GPU: the tests of autograd_cases.py."""

import pytest
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

pytestmark = [
    pytest.mark.gpu,
    # What torch itself warns of in forward mode.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated"),
]
