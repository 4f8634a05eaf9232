"""The benchmark of the recipes: it runs, its file is what it is to be, and later runs add to it."""

import json
import sys

import pytest

from benchmarks.common import machine, schema
from benchmarks.recipes import __main__ as command
from examples import recipes


def run(folder, *names):
    status = command.main([*names, "--quick", "--out", str(folder)])
    return status, json.loads((folder / "latest-recipes.json").read_text())


def test_quick(tmp_path, capsys):
    status, result = run(tmp_path, "voice_activity")
    schema.validate(result)
    (row,) = result["rows"]
    assert status == 0 and (row["recipe"], row["version"]) == ("voice_activity", "")
    assert row["times"]["nn.LSTM"]["samples"] == 1 and row["ratios"]["FastLSTM"]["ratio"] > 0
    assert row["apart"] < 1e-4
    assert "voice activity" in (tmp_path / "latest-recipes.md").read_text()
    assert "Recipes, rounds: 1, 1 thread" in capsys.readouterr().out


def test_runs_add_up(tmp_path, monkeypatch):
    """What another environment measured stays, in the order of the recipes; not if it is of
    another commit, nor where the commit says nothing."""

    def measured(name, quick, rounds, threads):
        if name == "speech_tagger" and "speech" not in installed:
            raise ModuleNotFoundError("no", name="speechbrain")
        spread = dict.fromkeys(("min_s", "q25_s", "median_s", "q75_s", "max_s"), 1.0)
        times = {"samples": 1} | spread
        return {
            "recipe": name,
            "what": name,
            "library": "",
            "version": installed,
            "threads": threads,
            "status": "ok",
            "times": {"nn.LSTM": times, "FastLSTM": times},
            "ratios": {"FastLSTM": {"of": "nn.LSTM", "ratio": 1.0, "low": 1.0, "high": 1.0}},
            "apart": 0.0,
        }

    monkeypatch.setattr(command, "measure", measured)
    monkeypatch.setattr(machine, "commit", lambda: commit)
    commit, installed = "abc", "first"
    both = ("atari_ppo", "speech_tagger")
    assert [row["recipe"] for row in run(tmp_path, *both)[1]["rows"]] == ["atari_ppo"]
    installed = "speech"
    found = {row["recipe"]: row["version"] for row in run(tmp_path, "speech_tagger")[1]["rows"]}
    assert list(found.items()) == [("speech_tagger", "speech"), ("atari_ppo", "first")]
    installed = "again"
    found = {row["recipe"]: row["version"] for row in run(tmp_path, "atari_ppo")[1]["rows"]}
    assert found == {"speech_tagger": "speech", "atari_ppo": "again"}
    for commit in ("def", "dirty", "dirty"):
        assert len(run(tmp_path, "voice_activity")[1]["rows"]) == 1
        assert len(run(tmp_path, "atari_ppo")[1]["rows"]) == 1 + (commit == "def")


def test_without_a_library(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "speechbrain", None)
    monkeypatch.setattr(command, "version", lambda name: "1")
    assert command.main(["speech_tagger", "--quick", "--out", str(tmp_path)]) == 1
    assert "nothing was measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_failing_recipe_says_so(monkeypatch, capsys, tmp_path):
    measure = command.measure

    def fails(name, *rest):
        if name == "atari_ppo":
            raise ValueError("of its own")
        return measure(name, *rest)

    monkeypatch.setattr(command, "measure", fails)
    status, result = run(tmp_path, "atari_ppo", "voice_activity")
    assert status == 1 and [row["recipe"] for row in result["rows"]] == ["voice_activity"]
    assert "atari_ppo: failed, ValueError: of its own" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--threads", "0"], ["no_recipe"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert f"got {arguments[-1]!r}".replace("'0'", "0") in capsys.readouterr().err


def test_every_recipe_is_in_the_list():
    folder = machine.ROOT / "examples" / "recipes"
    there = {path.stem for path in folder.glob("*.py")} - {"__init__", "common"}
    assert there == set(recipes.RECIPES)
