"""Each real-data program in its smoke setting: it runs, both models agree, all panels draw."""

import dataclasses
import importlib
import math
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from examples import console, report
from examples.__main__ import DEMOS, ON_REQUEST, main
from examples.common import BOTH, FAST, PLAIN, Comparison, Settings, shuffled_batches, side_by_side

ROOT = Path(__file__).resolve().parent.parent
NEEDS = {"digits": "sklearn", "forecast": "statsmodels", "converted": "sklearn"}
SMOKE = Settings(smoke=True)


def demo(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return importlib.import_module(f"examples.{name}")


@pytest.fixture(autouse=True)
def one_thread():
    """These models are small, and --threads is set by a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", DEMOS + ON_REQUEST)
def test_smoke(name):
    result = demo(name).run(SMOKE)
    assert result.name == name
    assert 2 <= result.comparison.steps <= 3
    for key in BOTH:
        assert all(math.isfinite(value) for value in result.comparison.losses[key])
        assert math.isfinite(result.scores[key])
        assert result.comparison.seconds[key] > 0
    assert result.comparison.max_difference == max(result.comparison.differences)


def test_distributed_is_the_same_by_ddp_and_fsdp(monkeypatch):
    """One process of one; two are compared with one in test_distributed.py."""
    program = demo("digits") and importlib.import_module("examples.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    found = []
    for options in ([], ["--fsdp"]):
        found.append(program.train(program.parse(["--smoke", *options])))
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(*found)
    assert len(found[0][0]) == 3


def test_distributed_says_how_to_start_it(capsys):
    program = demo("digits") and importlib.import_module("examples.distributed")
    assert program.main([]) == 2
    assert "torchrun --standalone" in capsys.readouterr().out


@pytest.mark.parametrize("name", DEMOS + ON_REQUEST)
def test_both_trainings_are_the_same_in_float64(name, double):
    """A wrong gradient or dropout mask shows at once where rounding is 1e-16."""
    result = demo(name).run(SMOKE)
    assert result.comparison.max_difference < 1e-12
    assert result.scores[PLAIN] == pytest.approx(result.scores[FAST], rel=1e-11)


def test_digits_data():
    (train, train_labels), (test, test_labels) = demo("digits").load(seed=0)
    assert train.shape[1:] == test.shape[1:] == (8, 8)
    assert len(train) == len(train_labels) and len(test) == len(test_labels)
    assert len(train) + len(test) == 1797
    assert train.min() == -1 and train.max() == 1
    assert set(test_labels.tolist()) == set(range(10))


def test_forecast_never_sees_the_year_it_forecasts():
    forecast = demo("forecast")
    years, values = forecast.load()
    assert years[0] == 1700 and years[-1] == 2008 and len(values) == 309
    torch.manual_seed(0)
    model = forecast.RegLSTM()
    before = forecast.one_step_ahead(model, values)
    changed = values.clone()
    changed[-1] += 100
    torch.testing.assert_close(forecast.one_step_ahead(model, changed), before, rtol=0, atol=0)
    changed[-2] += 100
    after = forecast.one_step_ahead(model, changed)
    torch.testing.assert_close(after[:-1], before[:-1], rtol=0, atol=0)
    assert after[-1] != before[-1]


def test_text_batches_continue_each_other():
    text = demo("text")
    tokens = torch.arange(10_000)
    batches = text.consecutive_batches(tokens, limit=3)
    assert [first for _, _, first in batches] == [True, False, False]
    for inputs, targets, _ in batches:
        assert inputs.shape == targets.shape == (text.BATCH, text.WINDOW)
        assert torch.equal(inputs + 1, targets)
    assert torch.equal(batches[0][0][:, -1] + 1, batches[1][0][:, 0])


def test_text_corpus_is_the_same_in_another_process():
    text = demo("text")
    corpus = text.corpus(limit=30_000)
    assert len(corpus) == 30_000 and corpus.isascii()
    code = "from examples.text import corpus; print(repr(corpus(30_000)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == repr(corpus) + "\n"


def test_text_writes_the_same_by_step_and_by_whole_calls(double):
    text = demo("text")
    torch.manual_seed(0)
    model = text.TextLSTM(40, text.FastLSTM).eval()
    assert text.step_difference(model, torch.arange(40)) < 1e-12
    alphabet = sorted({*text.PROMPT, *"bcdfgijklmnopqsvwxyz"})
    written = text.write(model, alphabet + ["?"] * (40 - len(alphabet)), 12, seed=0)
    assert written.startswith(text.PROMPT) and len(written) == len(text.PROMPT) + 12
    assert text.common_prefix(text.PROMPT + "abc", text.PROMPT + "abd") == 2
    assert text.common_prefix(text.PROMPT + "abc", text.PROMPT + "abc") == 3


def test_converted_model_knows_nothing_of_fastlstm():
    converted = demo("converted")
    assert type(converted.DigitReader().encoder.rnn) is nn.LSTM
    notes = " ".join(converted.run(SMOKE).notes)
    assert "encoder.rnn" in notes


def test_unequal_start_is_refused():
    models = {PLAIN: nn.Linear(2, 2), FAST: nn.Linear(2, 2)}
    with pytest.raises(ValueError, match="weight differs"):
        side_by_side("x", models, [None], None, learning_rate=0.1, seed=0)


def test_a_different_model_shows_as_a_difference():
    """The agreement is computed from both models, not from one of them twice."""
    models = {PLAIN: nn.Linear(2, 1), FAST: nn.Linear(2, 1)}
    models[FAST].load_state_dict(models[PLAIN].state_dict())
    models[FAST].register_forward_hook(lambda module, inputs, output: output * 1.5)
    batches = shuffled_batches([torch.ones(8, 2)], size=4, epochs=2, seed=0)
    comparison = side_by_side(
        "x", models, batches, lambda m, b: (m(b[0]) - 3).square().mean(), learning_rate=0.1, seed=0
    )
    assert comparison.steps == 4
    assert comparison.differences[0] > 0.01 and comparison.max_difference > 0.01


def test_a_nan_loss_is_never_a_good_agreement():
    comparison = Comparison({PLAIN: [1.0, math.nan], FAST: [1.0, 1.0]}, dict.fromkeys(BOTH, 1.0))
    assert math.isnan(comparison.max_difference)


def test_shuffled_batches():
    data = torch.arange(10)
    batches = shuffled_batches([data, -data], size=3, epochs=2, seed=0)
    assert len(batches) == 6
    assert all(torch.equal(a, -b) and len(a) == 3 for a, b in batches)
    assert not torch.equal(batches[0][0], batches[3][0])
    assert len(shuffled_batches([data], size=3, epochs=2, seed=0, limit=1)) == 2


def test_settings_scale_epochs():
    assert Settings(epochs=0.5).scaled(9) == 4
    assert Settings(epochs=0.001).scaled(9) == 1
    assert dataclasses.replace(SMOKE, epochs=5).scaled(9) == 1


@pytest.mark.parametrize("plain_text", [False, True], ids=["rich", "plain"])
def test_command_line(plain_text, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    if plain_text:
        monkeypatch.setattr(console, "Console", None)
    else:
        pytest.importorskip("rich")
    picture = tmp_path / "new" / "demo.png"
    status = main(["text", "--smoke", "--threads", "1", "--out", str(picture)])
    printed = capsys.readouterr().out
    assert status == 0
    assert ", 1 thread," in printed
    for expected in ("loss, first step", "test perplexity", "training time", *BOTH):
        assert expected in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_panel_draws(tmp_path):
    pytest.importorskip("matplotlib")
    from examples import picture

    for name in DEMOS:
        path = tmp_path / f"{name}.png"
        picture.save([demo(name).run(SMOKE)], str(path), "smoke")
        assert path.stat().st_size > 10_000


def test_missing_packages_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = str(tmp_path / "demo.png")
    assert main(["digits", "--smoke", "--out", out]) == 1
    assert "digits needs scikit-learn" in capsys.readouterr().out
    assert main(["text", "--smoke", "--out", out]) == 1
    assert "matplotlib, which is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["poem"], "no demo is called 'poem'"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--epochs", "-1"], "--epochs must be a positive factor, got -1"),
        (["--epochs", "nan"], "--epochs must be a positive factor, got nan"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_summary_has_a_line_for_each(capsys, monkeypatch):
    monkeypatch.setattr(console, "Console", None)
    result = demo("text").run(SMOKE)
    report.print_summary([result, dataclasses.replace(result, name="again")])
    printed = capsys.readouterr().out
    assert "\ntext " in printed and "\nagain " in printed


@pytest.mark.parametrize("name", ["digits", "text"])
def test_int8_is_measured(name, capsys):
    result = demo(name).run(dataclasses.replace(SMOKE, int8=True))
    assert [loss.how for loss in result.losses_of_int8] == ["int8 weights", "int8, weight_only"]
    for loss in result.losses_of_int8:
        assert str(loss) in result.notes and loss.lost == loss.lost
    assert not dataclasses.replace(result.losses_of_int8[0], lost=1.0).small
