"""Small LSTMs as functions of all their tensors, in float64: by fastlstm, and by plain torch, which
every transform of torch takes as it is and which is the oracle of tests of transforms.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm import functional
from fastlstm.reference import lstm as reference
from fastlstm.weights import LSTMWeights


@dataclass(frozen=True)
class Problem:
    """L layers, D directions, P outputs (None: no projection)."""

    D: int = 1
    L: int = 1
    P: int | None = None
    biases: bool = True
    lengths: bool = False
    resets: bool = False
    cells: bool = False
    T: int = 3
    N: int = 2
    I: int = 2
    H: int = 3

    def __str__(self):
        switches = ("biases", "lengths", "resets", "cells")
        sizes = [f"{k}{getattr(self, k)}" for k in "DLP" if getattr(self, k) is not None]
        return "-".join(sizes + [k for k in switches if getattr(self, k)])

    @property
    def outputs(self) -> int:
        return self.P or self.H

    def draw(self, device) -> list[Tensor]:
        """x (T, N, I), h0 and c0, and the weights one after the other."""
        shapes = [(self.T, self.N, self.I)]
        shapes += [(self.L * self.D, self.N, width) for width in (self.outputs, self.H)]
        for k in range(self.L):
            inputs = self.D * self.outputs if k else self.I
            for _ in range(self.D):
                shapes += [(4 * self.H, inputs), (4 * self.H, self.outputs)]
                shapes += [(4 * self.H,)] * 2 * self.biases
                shapes += [(self.P, self.H)] * (self.P is not None)
        return [torch.randn(s, dtype=torch.float64).to(device) for s in shapes]

    def masks(self, device) -> dict:
        """The options of a call."""
        made = {}
        if self.lengths:  # of each kind: a part of the steps, none of them
            made["lengths"] = (torch.arange(self.N) * 2 + self.T - 1).to(device) % (self.T + 1)
        if self.resets:
            mask = torch.rand(self.T, self.N) < 0.4
            mask[1:2, 0] = True
            made["reset_mask"] = mask.to(device)
        return made

    def layers(self, flat) -> list[LSTMWeights]:
        """The weights of `draw`, L*D of them."""
        per = 2 + 2 * self.biases + (self.P is not None)
        made = []
        for k in range(0, len(flat), per):
            ih, hh, *rest = flat[k : k + per]
            biases = rest[:2] if self.biases else (None, None)
            made.append(LSTMWeights(ih, hh, *biases, None if self.P is None else rest[-1]))
        return made

    def fast(self, backend: str):
        """A function of the tensors of `draw` and of `masks`: output, h_n, c_n and, where asked
        for, the cells."""

        def function(x, h0, c0, *flat, **masks):
            output, states, *cells = functional.lstm(
                x,
                self.layers(flat),
                (h0, c0),
                bidirectional=self.D == 2,
                return_cell_sequence=self.cells,
                backend=backend,
                **masks,
            )
            return output, *states, *cells

        return function

    def plain(self):
        """The same function in plain torch."""

        def function(x, h0, c0, *flat, lengths=None, reset_mask=None):
            layers, h_n, c_n = self.layers(flat), [], []
            for k in range(0, self.L * self.D, self.D):
                weights = layers[k : k + self.D]
                gates = [x @ w.weight_ih.t() for w in weights]
                if self.biases:
                    gates = [g + w.bias_ih + w.bias_hh for g, w in zip(gates, weights, strict=True)]
                hr = None if self.P is None else torch.stack([w.weight_hr for w in weights])
                x, h, c, cells, _ = reference.lstm_forward(
                    torch.stack(gates, 2),
                    h0[k : k + self.D],
                    c0[k : k + self.D],
                    torch.stack([w.weight_hh for w in weights]),
                    hr,
                    lengths,
                    reset_mask,
                )
                h_n.append(h)
                c_n.append(c)
            results = x, torch.cat(h_n), torch.cat(c_n)
            return (*results, cells.flatten(2)) if self.cells else results

        return function


def scalar(function):
    """The function with its results summed up, each in another way."""

    def value(*args, **options):
        results = function(*args, **options)
        return sum((r + 0.1 * k).sin().sum() for k, r in enumerate(results))

    return value


class Calls(TorchDispatchMode):
    """Counts the ops of fastlstm that run, by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastlstm":
            self.count[func._schema.name.removeprefix("fastlstm::")] += 1
        return func(*args, **(kwargs or {}))
