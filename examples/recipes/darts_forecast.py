"""darts: an RNNModel forecasts a noisy yearly rhythm. The change is `fastlstm.patch()`."""

from __future__ import annotations

import sys

import numpy as np
import torch

from examples.recipes.common import LIGHTNING, Outcome, main, patched_turns, quiet_lightning

LIBRARY, WHAT = "darts", "darts, RNNModel, fit and forecast"


def series(steps: int):
    from darts import TimeSeries

    t = np.arange(steps)
    noise = np.random.default_rng(0).normal(0, 0.1, steps)
    values = np.sin(2 * np.pi * t / 52) + 0.3 * np.sin(2 * np.pi * t / 13) + noise
    return TimeSeries.from_values(values.astype(np.float32))


def run(smoke: bool, rounds: int) -> Outcome:
    from darts.models import RNNModel

    past = series(200 if smoke else 400)

    def fit_and_forecast() -> torch.Tensor:
        model = RNNModel(
            input_chunk_length=52,
            training_length=104,
            model="LSTM",
            hidden_dim=8 if smoke else 64,
            n_rnn_layers=2,
            n_epochs=1,
            random_state=0,
            pl_trainer_kwargs=LIGHTNING,
        )
        model.fit(past)
        return torch.from_numpy(model.predict(26).values())

    with quiet_lightning():
        return patched_turns(fit_and_forecast, rounds)


if __name__ == "__main__":
    sys.exit(main(run, WHAT))
