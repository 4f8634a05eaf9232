"""What the tests share that run an nn.LSTM and a FastLSTM side by side."""

import pytest
import torch
from torch import nn

from fastlstm import FastLSTM
from fastlstm.backends import native

needs_library = pytest.mark.skipif(native.load() is not None, reason=str(native.load()))
on_cpu = pytest.param("cpu", marks=needs_library)

# What nn.LSTM itself warns of, once a process, where its own faster path does not serve.
ignore_onednn = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For files that import it: nn.LSTM's threads wait for each other a hundred times longer than
    these sizes take, where other processes have the cores. The kernels' threads have other tests.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(input_size, hidden_size, num_layers=1, *, backend="auto", **options):
    """An nn.LSTM and a FastLSTM of the same options and weights."""
    lstm = nn.LSTM(input_size, hidden_size, num_layers, **options)
    fast = FastLSTM(input_size, hidden_size, num_layers, backend=backend, **options)
    fast.load_state_dict(lstm.state_dict())
    return lstm, fast
