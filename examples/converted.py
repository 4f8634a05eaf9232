"""The digits again, with a model that was written for nn.LSTM, through convert().

Two bidirectional layers with dropout between them, within a larger model. `fastlstm.convert`
replaces every nn.LSTM by a FastLSTM with the same weights; the dropout masks are the same too,
because both draw them from torch's generator in the same order.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

import fastlstm
from examples import digits
from examples.common import FAST, PLAIN, Result, Settings, seeded

EPOCHS = 20


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 50, num_layers=2, dropout=0.2, bidirectional=True, batch_first=True)

    def forward(self, images):  # (N, T=8, I=8) -> (N, 100)
        _, (h_n, _) = self.rnn(images)
        return torch.cat([h_n[-2], h_n[-1]], dim=-1)  # the last layer's two directions


class DigitReader(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))

    def forward(self, images):  # (N, T=8, I=8) -> (N, 10)
        return self.head(self.encoder(images))


def run(settings: Settings) -> Result:
    plain = seeded(settings.seed, DigitReader)
    fast = fastlstm.convert(copy.deepcopy(plain), backend=settings.backend)  # the one line

    title = "Digits through convert(): LSTM(8, 50, num_layers=2, dropout=0.2, bidirectional=True)"
    models = {PLAIN: plain, FAST: fast}
    result = digits.train("converted", title, models, EPOCHS, draw_confusion, settings)
    replaced = [key for key, part in fast.named_modules() if isinstance(part, fastlstm.FastLSTM)]
    result.notes.append(f"convert() put a FastLSTM at: {', '.join(replaced)}")
    return result


def draw_confusion(ax, images, labels, predicted) -> None:
    counts = torch.zeros(10, 10, dtype=torch.int64)
    counts.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
    ax.imshow(counts.numpy(), cmap="Greys", vmax=counts.max().item() * 1.6)
    for true, read in counts.nonzero().tolist():
        color = "0.1" if true == read else "crimson"
        count = int(counts[true, read])
        ax.text(read, true, count, ha="center", va="center", fontsize=7, color=color)
    ax.set_xticks(range(10))
    ax.set_yticks(range(10))
    ax.set_xlabel("read as")
    ax.set_ylabel("digit")
    ax.set_title("The converted model's reading of the test images")
