"""The benchmark of recurrent PPO: it runs, and its file and tables are what they are to be."""

import json
import sys

import pytest

from benchmarks.common import schema
from benchmarks.rl import __main__ as command
from benchmarks.rl import report


def test_quick(tmp_path, capsys):
    pytest.importorskip("sb3_contrib")
    assert command.main(["--quick", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "latest-rl.json").read_text())
    schema.validate(result)
    assert [row["part"] for row in result["rows"]] == ["update", "training"]
    for row in result["rows"]:
        assert set(row["same_rewards"]) == {"nn.LSTM", "converted", "fast policy"}
        assert all(row["same_rewards"].values()) and row["episodes"] > 2
        assert row["times"]["nn.LSTM"]["samples"] == 2
    update, whole = result["rows"]
    assert all(update["total_s"][name] < whole["total_s"][name] for name in whole["total_s"])
    assert "whole training, H = 8" in (tmp_path / "latest-rl.md").read_text()
    assert "RecurrentPPO" in capsys.readouterr().out


def test_a_training_with_other_rewards_says_so():
    times = {name: {"samples": 2} for name in ("nn.LSTM", "fast policy")}
    row = {
        "part": "update",
        "H": 8,
        "n_envs": 2,
        "n_steps": 4,
        "threads": 1,
        "times": times,
        "total_s": dict.fromkeys(times, 1.0),
        "ratios": {"fast policy": {"ratio": 0.5, "low": 0.4, "high": 0.6}},
        "same_rewards": {"nn.LSTM": True, "fast policy": False},
    }
    ((title, header, lines, ratios),) = report.tables({"rows": [row]})
    assert lines == [["updates, H = 8", "1.00", "1.00", "0.50 (0.40-0.60)", "no"]]
    assert ratios == [0.5] and len(header) == len(lines[0]) and "2 rollouts, 1 thread" in title


def test_without_the_library(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    assert command.main(["--quick"]) == 1
    assert "sb3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["envs", "steps", "rounds", "threads"])
def test_bad_arguments(name, capsys):
    with pytest.raises(SystemExit):
        command.main([f"--{name}", "0"])
    assert f"{name}: got 0" in capsys.readouterr().err
