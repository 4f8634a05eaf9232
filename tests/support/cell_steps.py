"""Loops over FastLSTMCell and FastLSTM.step, and how often their ops run."""

import torch
from pairs import pair
from torch import nn

from fastlstm import FastLSTMCell
from fastlstm.stack import step_training


class Calls:
    """How often each op has run."""

    def __init__(self, monkeypatch):
        self.counts = dict.fromkeys(("_forward", "_backward", "_weight_gradients"), 0)
        for name in self.counts:
            monkeypatch.setattr(step_training, name, self.counted(name))

    def counted(self, name):
        op = getattr(step_training, name)

        def call(*args):
            self.counts[name] += 1
            return op(*args)

        return call

    def taken(self):
        found = tuple(self.counts.values())
        self.counts = dict.fromkeys(self.counts, 0)
        return found


class InSteps:
    """A FastLSTM called step by step."""

    def __init__(self, fast):
        self.fast, self.named_parameters = fast, fast.named_parameters

    def __call__(self, input, hx=None):
        outputs = []
        for x_t in input:
            y, hx = self.fast.step(x_t, hx)
            outputs.append(y)
        return torch.stack(outputs), hx


class ByCells:
    """A FastLSTMCell called as an nn.LSTM of one layer is."""

    def __init__(self, cell):
        self.cell = cell

    def named_parameters(self):
        return [(f"{name}_l0", w) for name, w in self.cell.named_parameters()]

    def __call__(self, input, hx=None):
        hx = hx and (hx[0][0], hx[1][0])
        outputs = []
        for x_t in input:
            hx = self.cell(x_t, hx)
            outputs.append(hx[0])
        return torch.stack(outputs), (hx[0].unsqueeze(0), hx[1].unsqueeze(0))


def by_cells(lstm, **options):
    cell = FastLSTMCell(lstm.input_size, lstm.hidden_size, lstm.bias, **options)
    cell.load_state_dict({name[:-3]: w for name, w in lstm.state_dict().items()})
    return ByCells(cell)


def problem(N, I, H, options, dtype=torch.float32, T=3):
    lstm, fast = pair(I, H, dtype=dtype, **options)
    lead = () if N is None else (N,)
    L, P = lstm.num_layers, lstm.proj_size or H
    hx = torch.randn(L, *lead, P).to(dtype), torch.randn(L, *lead, H).to(dtype)
    return lstm, fast, torch.randn(T, *lead, I).to(dtype), hx


def cell_problem(N=3, I=5, H=7, T=4, dtype=torch.float32):
    """An nn.LSTMCell, a FastLSTMCell of the same weights, and inputs."""
    plain = nn.LSTMCell(I, H, dtype=dtype)
    return plain, FastLSTMCell.from_torch(plain), torch.randn(T, N, I, dtype=dtype)


def outputs_of(cell, xs, state=None):
    outputs = []
    for x in xs:
        state = cell(x, state)
        outputs.append(state[0])
    return torch.stack([*outputs, state[1]])


def gradients(cell, xs, **options):
    y = outputs_of(cell, xs)
    return torch.autograd.grad(y.square().sum(), list(cell.parameters()), **options)
