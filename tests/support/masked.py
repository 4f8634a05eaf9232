"""Calls with masks as modules of input and states alone, so that `fastlstm.testing.compare` takes
them."""

import copy

import torch
from torch import nn

# Which arguments a call has beside input and states.
MASKS = [
    ("lengths",),
    ("reset_mask",),
    ("return_cell_sequence",),
    ("lengths", "reset_mask", "return_cell_sequence"),
]


def masks_of(names, module, x) -> dict:
    """Random arguments of these names for a call of a FastLSTM on x."""
    lead = x.shape[:-1]
    turned = module.batch_first and x.dim() == 3
    T, N = (lead[0], 1) if x.dim() == 2 else lead[::-1] if turned else lead
    every = {
        "lengths": torch.randint(0, T + 1, (N,)),
        "reset_mask": torch.rand(lead) < 0.4,
        "return_cell_sequence": True,
    }
    return {name: every[name] for name in names}


class Masked(nn.Module):
    def __init__(self, module, masks: dict):
        super().__init__()
        self.module, self.masks = module, masks

    def forward(self, x, hx=None):
        return self.module(x, hx, **self.masks)


def on_reference(module):
    """A copy whose layers are plain torch."""
    found = copy.deepcopy(module)
    found.backend = "reference"
    return found
