"""pytorch-forecasting: the temporal fusion transformer, whose encoder and decoder are LSTMs.

Its LSTM is a class derived from nn.LSTM, and a class is derived when its file runs: the patch has
to be there before the import. To compare, this program imports the library twice.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import numpy as np
import torch

import fastlstm
from examples.recipes.common import LIGHTNING, Outcome, by_turns, main, quiet_lightning

LIBRARY, WHAT = "pytorch-forecasting", "pytorch-forecasting, temporal fusion transformer, training"
MODULE = "pytorch_forecasting"
PAST, FUTURE = 48, 12


def imported_anew() -> ModuleType:
    for name in [n for n in sys.modules if n.partition(".")[0] == MODULE]:
        del sys.modules[name]
    return importlib.import_module(MODULE)


def table(series: int, steps: int):
    import pandas

    t, rows = np.arange(steps), []
    for k in range(series):
        noise = np.random.default_rng(k).normal(0, 0.1, steps)
        value = (np.sin(2 * np.pi * (t + 5 * k) / 24) + noise).astype(np.float32)
        rows.append(pandas.DataFrame({"series": str(k), "time": t, "value": value}))
    return pandas.concat(rows, ignore_index=True)


def train(library: ModuleType, data, smoke: bool) -> torch.Tensor:
    """The forecasts of the first rows after some steps of training."""
    import lightning.pytorch as lightning

    sets = library.TimeSeriesDataSet(
        data,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=PAST,
        min_encoder_length=PAST // 2,
        max_prediction_length=FUTURE,
        time_varying_unknown_reals=["value"],
    )
    model = library.TemporalFusionTransformer.from_dataset(
        sets, hidden_size=8 if smoke else 64, lstm_layers=2, attention_head_size=2, dropout=0.0
    )
    trainer = lightning.Trainer(
        max_epochs=1, limit_train_batches=2 if smoke else 12, gradient_clip_val=0.1, **LIGHTNING
    )
    trainer.fit(model, sets.to_dataloader(train=True, batch_size=32))
    x, _ = next(iter(sets.to_dataloader(train=False, batch_size=32)))
    with torch.no_grad():
        return model.eval()(x).prediction


def run(smoke: bool, rounds: int) -> Outcome:
    with quiet_lightning():
        plain = imported_anew()
        with fastlstm.patch():
            fast = imported_anew()
        data = table(4, 120 if smoke else 200)
        return by_turns(lambda: train(plain, data, smoke), lambda: train(fast, data, smoke), rounds)


if __name__ == "__main__":
    sys.exit(main(run, WHAT))
