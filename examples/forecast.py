"""How many sunspots next year? RegLSTM: an LSTM and a Linear on every step (many-to-many).

Data: the yearly sunspot numbers 1700-2008 that ship with statsmodels. The model trains on
windows of the past and forecasts each of the last 60 years from all years before it; the
persistence forecast ("next year is as this year") is what it has to beat.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from examples.common import (
    FAST,
    PLAIN,
    MissingPackage,
    Result,
    Settings,
    seeded,
    shuffled_batches,
    side_by_side,
)
from fastlstm import FastLSTM

EPOCHS, BATCH, LEARNING_RATE = 40, 32, 0.1
WINDOW, HELD_OUT = 64, 60  # years


class RegLSTM(nn.Module):
    def __init__(self, lstm=nn.LSTM, **options):
        super().__init__()
        self.lstm = lstm(1, 128, **options)
        self.head = nn.Linear(128, 1)

    def forward(self, series):  # (T, N, 1) -> (T, N, 1), step t forecasts the value at t + 1
        output, _ = self.lstm(series)
        return self.head(output)


def run(settings: Settings) -> Result:
    years, values = load()
    past = values[:-HELD_OUT]
    mean, std = past.mean(), past.std()  # of the past only: the held-out end stays unseen
    scaled = (values - mean) / std

    def swapped():  # the one line: FastLSTM where nn.LSTM was
        return RegLSTM(FastLSTM, backend=settings.backend)

    models = {PLAIN: seeded(settings.seed, RegLSTM), FAST: seeded(settings.seed, swapped)}
    windows = scaled[:-HELD_OUT].unfold(0, WINDOW + 1, 1)  # (count, WINDOW + 1)
    limit = 2 if settings.smoke else None
    batches = shuffled_batches([windows], BATCH, settings.scaled(EPOCHS), settings.seed, limit)
    comparison = side_by_side("forecast", models, batches, loss, learning_rate=LEARNING_RATE, seed=settings.seed)
    truth = values[-HELD_OUT:]
    forecasts = {name: one_step_ahead(model, scaled) * std + mean for name, model in models.items()}
    apart = (forecasts[PLAIN] - forecasts[FAST]).abs().max().item()
    return Result(
        name="forecast",
        title="Yearly sunspots, one year ahead: RegLSTM = LSTM(1, 128) + Linear on every step",
        comparison=comparison,
        score_name="test RMSE",
        score_format="{:.3f}".format,
        scores={name: rmse(forecast, truth) for name, forecast in forecasts.items()},
        baseline=("persistence RMSE", rmse(values[-HELD_OUT - 1 : -1], truth)),
        draw=lambda ax: draw_forecast(ax, years, values, forecasts),
        notes=[f"the two forecasts are at most {apart:.2g} sunspots apart in any year"],
    )


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Years and sunspot numbers, each (309,)."""
    try:
        from statsmodels.datasets import sunspots
    except ImportError:
        raise MissingPackage("forecast", "statsmodels") from None
    data = sunspots.load_pandas().data
    dtype = torch.get_default_dtype()
    return (
        torch.tensor(data["YEAR"].tolist(), dtype=dtype),
        torch.tensor(data["SUNACTIVITY"].tolist(), dtype=dtype),
    )


def loss(model: nn.Module, batch) -> torch.Tensor:
    series = batch[0].t().unsqueeze(-1)  # (WINDOW + 1, N, 1)
    return F.mse_loss(model(series[:-1]), series[1:])


@torch.no_grad()
def one_step_ahead(model: nn.Module, scaled: torch.Tensor) -> torch.Tensor:
    """Forecasts of the last HELD_OUT values, each made from every true value before it."""
    return model(scaled[:-1].reshape(-1, 1, 1)).flatten()[-HELD_OUT:]


def rmse(forecast: torch.Tensor, truth: torch.Tensor) -> float:
    return F.mse_loss(forecast, truth).sqrt().item()


def draw_forecast(ax, years, values, forecasts) -> None:
    years, values = years[-HELD_OUT - 30 :].numpy(), values[-HELD_OUT - 30 :].numpy()
    test_years = years[-HELD_OUT:]
    ax.plot(years, values, color="0.55", linewidth=2.5, label="sunspots")
    plain, fast = forecasts[PLAIN].numpy(), forecasts[FAST].numpy()
    ax.plot(test_years, plain, color="tab:blue", linewidth=3.5, alpha=0.45, label=PLAIN)
    ax.plot(test_years, fast, color="tab:red", linewidth=0.9, label=FAST)
    ax.axvspan(test_years[0], test_years[-1], color="0.95", zorder=0)
    ax.set_title(f"Forecasts one year ahead, last {HELD_OUT} years held out")
    ax.set_xlabel("year")
    ax.legend(loc="upper left", fontsize=8, ncols=3)
    ax.set_ylim(top=values.max() * 1.25)
