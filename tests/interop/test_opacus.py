"""opacus, where it is installed, takes a FastLSTM for the nn.LSTM that it is."""

import pytest
import torch
from torch import nn

from fastlstm import FastLSTM

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, lstm):
        super().__init__()
        self.lstm, self.head = lstm, nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def test_the_validator_says_so_and_puts_its_own_in_place():
    validators = pytest.importorskip("opacus.validators")
    fast = Model(FastLSTM(5, 6, 2, batch_first=True))
    plain = Model(fast.lstm.to_torch())
    errors = [validators.ModuleValidator.validate(m, strict=False) for m in (fast, plain)]
    assert [str(e) for e in errors[0]] == [str(e) for e in errors[1]] != []
    fixed = validators.ModuleValidator.fix(fast)
    assert type(fixed.lstm).__name__ == "DPLSTM" and type(fast.lstm) is FastLSTM
    torch.testing.assert_close(fixed(X), fast(X))


def test_gradients_of_samples_are_those_of_a_loop():
    opacus = pytest.importorskip("opacus")
    fast = Model(FastLSTM(5, 6, batch_first=True))
    fixed = opacus.validators.ModuleValidator.fix(fast)
    sampled = opacus.GradSampleModule(fixed, loss_reduction="sum")
    sampled(X).sin().sum().backward()
    found = {name: p.grad_sample for name, p in fixed.named_parameters()}
    for k in range(len(X)):
        names, parameters = zip(*fast.named_parameters(), strict=True)
        grads = torch.autograd.grad(fast(X[k : k + 1]).sin().sum(), parameters)
        for name, grad in zip(names, grads, strict=True):
            torch.testing.assert_close(found[name][k], grad)
