"""torch.func on a GPU, and forward mode: the tests of transform_cases.py and vmap_cases.py."""

import pytest
from transform_cases import *  # noqa: F403
from vmap_cases import *  # noqa: F403

pytestmark = [
    pytest.mark.gpu,
    # What torch itself warns of in forward mode.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated"),
]
