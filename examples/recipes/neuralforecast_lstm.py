"""neuralforecast: its LSTM forecasts several series with a yearly rhythm. The change is
`fastlstm.patch()`."""

from __future__ import annotations

import sys

import numpy as np
import torch

from examples.recipes.common import LIGHTNING, Outcome, main, patched_turns, quiet_lightning

LIBRARY, WHAT = "neuralforecast", "neuralforecast, LSTM, fit and forecast"
HORIZON, PAST = 12, 52


def table(series: int, steps: int):
    import pandas

    t, parts = np.arange(steps), []
    for k in range(series):
        noise = np.random.default_rng(k).normal(0, 0.1, steps)
        values = (np.sin(2 * np.pi * (t + 7 * k) / 52) + noise).astype(np.float32)
        days = pandas.date_range("2000-01-02", periods=steps, freq="W")
        parts.append(pandas.DataFrame({"unique_id": str(k), "ds": days, "y": values}))
    return pandas.concat(parts, ignore_index=True)


def run(smoke: bool, rounds: int) -> Outcome:
    from neuralforecast import NeuralForecast
    from neuralforecast.models import LSTM

    past = table(3, 100 if smoke else 200)

    def fit_and_forecast() -> torch.Tensor:
        model = LSTM(
            h=HORIZON,
            input_size=PAST,
            encoder_hidden_size=8 if smoke else 128,
            max_steps=2 if smoke else 12,
            windows_batch_size=32,
            random_seed=0,
            **LIGHTNING,
        )
        forecaster = NeuralForecast(models=[model], freq="W")
        forecaster.fit(past)
        return torch.from_numpy(forecaster.predict()["LSTM"].to_numpy())

    with quiet_lightning():
        return patched_turns(fit_and_forecast, rounds)


if __name__ == "__main__":
    sys.exit(main(run, WHAT))
