"""fastlstm.init: what it sets, and that it sets nothing else."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastlstm
from fastlstm import FastLSTM, FastLSTMCell, init

H, P = 8, 3
MODULES = {
    "stack": lambda: FastLSTM(5, H, 2, bidirectional=True),
    "projection": lambda: FastLSTM(5, H, proj_size=P),
    "nn.LSTM": lambda: nn.LSTM(5, H),
    "cell": lambda: FastLSTMCell(5, H),
    "bfloat16": lambda: FastLSTM(5, H, dtype=torch.bfloat16),
}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def rest(module, kind):
    return {n: p.detach().clone() for n, p in module.named_parameters() if not n.startswith(kind)}


@modules
def test_forget_bias(make):
    module = make()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    assert fastlstm.init.forget_bias_(module, 1.5) is module
    for name, now in module.named_parameters():
        if name.startswith("bias"):
            assert (now[H : 2 * H] == (1.5 if name.startswith("bias_ih") else 0)).all()
            now = torch.cat([now[:H], now[2 * H :]])
            before[name] = torch.cat([before[name][:H], before[name][2 * H :]])
        assert torch.equal(now, before[name])
        assert now.requires_grad


@modules
def test_orthogonal(make):
    module = make()
    before = rest(module, ("weight_hh", "weight_hr"))
    assert init.orthogonal_(module, 2.0) is module
    eps = torch.finfo(next(module.parameters()).dtype).eps
    for name, weight in module.named_parameters():
        if not name.startswith(("weight_hh", "weight_hr")):
            assert torch.equal(weight, before[name])
            continue
        blocks = weight.chunk(4) if name.startswith("weight_hh") else [weight]
        for block in blocks:
            block = block.double() if len(block) >= block.shape[1] else block.double().t()
            gram = block.t() @ block
            torch.testing.assert_close(gram, 4 * torch.eye(len(gram)).double(), rtol=0, atol=32 * eps)
        assert not torch.equal(blocks[0], blocks[-1]) or len(blocks) == 1


def test_what_is_refused():
    with pytest.raises(TypeError, match="got GRU, expected an LSTM"):
        init.orthogonal_(nn.GRU(3, 4))
    for module in (FastLSTM(3, 4, bias=False), nn.LSTMCell(3, 4, bias=False)):
        with pytest.raises(ValueError, match="has no biases"):
            init.forget_bias_(module)
    module = parametrizations.weight_norm(FastLSTM(3, 4), "weight_hh_l0")
    with pytest.raises(ValueError, match="weight_hh_l0 is no parameter"):
        init.orthogonal_(module)
