"""speechbrain: its LSTM, two layers and both directions, labels the frames of made-up features. The
change is `fastlstm.patch()`."""

from __future__ import annotations

import sys

import torch
from torch import nn

from examples.recipes.common import Outcome, main, patched_turns

LIBRARY, WHAT = "speechbrain", "speechbrain, bidirectional LSTM, training"
FEATURES, LABELS = 80, 20


def run(smoke: bool, rounds: int) -> Outcome:
    from speechbrain.nnet.linear import Linear
    from speechbrain.nnet.RNN import LSTM

    N, T, H, steps = (2, 20, 8, 1) if smoke else (8, 200, 128, 3)
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(N, T, FEATURES, generator=generator),
            torch.randint(LABELS, (N, T), generator=generator),
        )
        for _ in range(steps)
    ]

    def train() -> torch.Tensor:
        tagger = LSTM(hidden_size=H, input_size=FEATURES, num_layers=2, bidirectional=True)
        out = Linear(n_neurons=LABELS, input_size=2 * H)
        optimizer = torch.optim.SGD([*tagger.parameters(), *out.parameters()], 0.1)
        for features, labels in batches:
            scores = out(tagger(features)[0])
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return scores

    return patched_turns(train, rounds)


if __name__ == "__main__":
    sys.exit(main(run, WHAT))
