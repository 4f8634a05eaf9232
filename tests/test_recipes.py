"""The recipes in their smoke setting, each where its library is installed."""

import importlib

import pytest
import torch
from torch import nn

import fastlstm
from examples.recipes import common
from fastlstm import torch_classes

NEEDS = {
    "darts_forecast": ("darts", "pytorch_lightning"),
    "forecasting_tft": ("pytorch_forecasting",),
    "neuralforecast_lstm": ("neuralforecast",),
    "speech_tagger": ("speechbrain",),
    "voice_activity": (),
    "atari_ppo": (),
}


@pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours
@pytest.mark.parametrize("name", NEEDS)
def test_both_ways_give_the_same(name):
    for library in NEEDS[name]:
        pytest.importorskip(library, exc_type=ImportError)
    outcome = importlib.import_module(f"examples.recipes.{name}").run(True, 1)
    assert len(outcome.ratios) == 1 and outcome.ratio > 0
    torch.testing.assert_close(outcome.results[1], outcome.results[0])
    assert nn.LSTM is torch_classes.LSTM


def test_turns(capsys):
    """Every other round begins with the second way; the first round does not count."""
    order, kinds = [], []

    def way(name):
        def work():
            order.append(name)
            kinds.append(type(nn.LSTM(1, 1)) is fastlstm.FastLSTM)
            return torch.rand(3)

        return work

    outcome = common.by_turns(way("a"), way("b"), 2, fastlstm.patch)
    assert "".join(order) == "abbaab" and len(outcome.ratios) == 2
    assert kinds == [name == "b" for name in order]
    assert outcome.apart == 0
    assert common.main(lambda smoke, rounds: outcome, "what", ["--smoke"]) == 0
    assert "what: " in capsys.readouterr().out

    def missing(smoke, rounds):
        raise ModuleNotFoundError("no", name="library")

    assert common.main(missing, "what", []) == 1
    assert "needs library" in capsys.readouterr().out
