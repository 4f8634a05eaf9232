"""autograd's own tools on a GPU: the tests of autograd_cases.py."""

import pytest
from autograd_cases import *  # noqa: F403

pytestmark = [
    pytest.mark.gpu,
    # What torch itself warns of in forward mode.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated"),
]
