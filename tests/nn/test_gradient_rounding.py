"""How far the gradients of weights are from float64, beside nn.LSTM's."""

import pytest
import torch
from pairs import needs_library
from torch import nn

from fastlstm import FastLSTM
from fastlstm.backends import native

TILES = native.load() is None and native.cpu_isa().startswith("amx")
pytestmark = [needs_library, pytest.mark.skipif(TILES, reason="tiles sum a whole slab at once")]


def errors(T, N, H, seed):
    """Root mean squares of the errors of dW_ih and dW_hh, FastLSTM's and nn.LSTM's."""
    torch.manual_seed(seed)
    base = nn.LSTM(H, H)
    fast, exact = FastLSTM(H, H), nn.LSTM(H, H, dtype=torch.float64)
    x, doutput = torch.randn(T, N, H), torch.randn(T, N, H)
    gradients = []
    for module, dtype in ((exact, torch.float64), (fast, torch.float32), (base, torch.float32)):
        module.load_state_dict(base.state_dict())
        module(x.to(dtype))[0].backward(doutput.to(dtype))
        gradients.append([module.weight_ih_l0.grad.double(), module.weight_hh_l0.grad.double()])
    return [[(a - b).square().mean().sqrt() for a, b in zip(each, gradients[0], strict=True)] for each in gradients[1:]]


@pytest.mark.parametrize(("T", "N", "H"), [(64, 16, 64), (512, 1, 64), (40, 40, 33)])
def test_rows_are_summed_in_parts(T, N, H):
    # One chain of additions over 384 rows had 1.5 times the error of nn.LSTM, which adds a step's rows at a time.
    ours, base = (torch.tensor(each) for each in zip(*(errors(T, N, H, seed) for seed in range(4)), strict=True))
    assert (ours.mean(0) <= 1.2 * base.mean(0)).all()
