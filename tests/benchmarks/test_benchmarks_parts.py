"""The benchmark's products, other engines in processes of their own, and the pages' machines."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from pairs import needs_library

from benchmarks import machines
from benchmarks.common import schema, terminal
from benchmarks.common.check import WrongResult
from benchmarks.common.machine import ROOT
from benchmarks.common.peers import Problem
from benchmarks.common.shapes import Case
from benchmarks.cpu import (
    cli,
    engine_rounds,
    engines,
    floor,
    int8_engines,
    overview,
    products,
    report,
    tables,
)
from benchmarks.cpu.engines import FAST, FAST_STORED, NN_LSTM, ONNX_RUNTIME, OPENVINO
from benchmarks.cpu.products import Product
from benchmarks.recipes.report import tables as recipe_tables
from fastlstm.backends import native

TINY = Case(5, 3, 4, 6)
SMALL = (7, 12, 5)


@pytest.mark.parametrize("order", products.ORDERS)
def test_factors_lie_as_the_order_says(order):
    left, right = Product(SMALL, order, "float32", 1).factors()
    plain = Product(SMALL, "NN", "float32", 1).factors()
    assert torch.equal(left, plain[0]) and torch.equal(right, plain[1])
    assert left.stride() == ((1, 7) if order[0] == "T" else (5, 1))
    assert right.stride() == ((1, 5) if order[1] == "T" else (12, 1))


def test_every_product_is_listed_once():
    found = products.products(["float32", "bfloat16"], [1, 2])
    assert len(set(found)) == len(found) == 2 * 2 * 6 * 3
    assert products.TARGETS.keys() <= set(products.SHAPES)


def test_a_wrong_product_is_found():
    left, right = Product((64, 48, 300), "NN", "float32", 1).factors()
    good = left @ right
    products.judge({"good": good}, left, right)
    for spoil in (
        lambda t: t[5].mul_(1.01),
        lambda t: t[5, 7].fill_(torch.nan),
        # What a product of factors rounded to bfloat16 gives.
        lambda t: t.copy_(left.bfloat16().float() @ right.bfloat16().float()),
    ):
        bad = good.clone()
        spoil(bad)
        with pytest.raises(WrongResult, match="bad: an element is off"):
            products.judge({"good": good, "bad": bad}, left, right)


@needs_library
def test_products_are_shown_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(products, "SHAPES", (SMALL,))
    monkeypatch.setattr(products, "TARGETS", {SMALL: 2.0})
    peaks = {("float32", "avx2", 1): 1e12}
    monkeypatch.setattr(floor.Machine, "measure_peaks", lambda m, *_: m.peaks.update(peaks))
    arguments = ["--products", "--threads", "1", "--cell-seconds", "0.01", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    result = json.loads((tmp_path / "latest-products.json").read_text())
    schema.validate(result)
    assert [(r["order"], r["dtype"]) for r in result["rows"]] == [
        (order, dtype) for dtype in ("float32", "bfloat16") for order in products.ORDERS
    ]
    for row in result["rows"]:
        own = row["dtype"] == "float32" or native.cpu_isa() == "avx512bf16"
        for name in (products.OWN, products.PACKED):
            assert (name in row["gflops"]) == own == (name not in row["notes"])
        assert products.TORCH in row["gflops"]
        for name, rate in row["gflops"].items():
            assert rate == pytest.approx(2 * 7 * 12 * 5 / row["times"][name]["median_s"] / 1e9)
            assert row["shares"][name] == pytest.approx(rate / 1e3)
    text = (tmp_path / "latest-products.md").read_text()
    assert "float32 by avx2 1000 (1 thread) GF/s" in text
    assert text.count("200% missed") == 3
    if native.cpu_isa() != "avx512bf16":
        reason = "left has a dtype that these products do not take"
        assert reason in text and reason in " ".join(capsys.readouterr().out.split())


def test_a_product_that_fails_is_a_row(monkeypatch):
    monkeypatch.setitem(products.ENGINES, products.ONEDNN, lambda a, b: lambda: a @ b + 1)
    rows = list(products.run([Product(SMALL, "NT", "float32", 1)], 0.0))
    assert rows[0]["status"] == "failed" and "WrongResult: oneDNN linear" in rows[0]["error"]
    assert rows[0]["error"] in str(tables.product_tables(rows))


def served(name, case=TINY):
    server = engines.Server(name, 1)
    return server, server.answer({"case": asdict(case)})


@pytest.mark.parametrize("name", engines.ENGINES)
def test_an_engine_has_the_results_of_nn_lstm(name):
    for package in engines.PACKAGES.get(name, ()):
        pytest.importorskip(package)
    server, answer = served(name, Case(6, 2, 5, 7))
    assert 0 <= answer["budget_used"] <= 1
    times = server.answer({"seconds": 0.0})["times"]
    assert len(times) == 1 and times[0] > 0


def test_a_wrong_engine_is_not_timed(monkeypatch):
    def wrong(problem, threads):
        call = engines.torch_lstm(problem, threads)
        return lambda: tuple(t * 1.001 for t in call())

    monkeypatch.setitem(engines.ENGINES, ONNX_RUNTIME, wrong)
    assert "WrongResult: ONNX Runtime: output is off" in served(ONNX_RUNTIME)[1]["error"]


def test_the_oracle_of_stored_weights_has_the_rounded_ones():
    """Exact weights would be outside the budget of what was rounded."""
    problem = Problem.make(Case(6, 2, 5, 7), torch.float32)
    call = engines.torch_lstm(engines.rounded(problem), 1)
    assert engines.checked(FAST_STORED, problem, call) <= 1
    with pytest.raises(WrongResult):
        engines.checked(FAST, problem, call)


@pytest.mark.parametrize("name", [ONNX_RUNTIME, OPENVINO])
def test_a_missing_package_says_so(name, monkeypatch):
    missing = engines.PACKAGES[name][0]
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    pattern = f"{missing} is not installed: pip install fastlstm[peers]"
    assert served(name)[1] == {"error": pattern}


def test_engines_take_turns_in_processes_of_their_own():
    with engine_rounds.started([NN_LSTM, FAST], 1) as running:
        assert len({engine.process.pid for engine in running.values()}) == 2
        row = engine_rounds.measured_row(TINY, 1, running, 0.0)
        if hasattr(os, "sched_getaffinity"):  # the last round's core
            core = set(engine_rounds.cores_of_round(engine_rounds.MIN_REPS - 1, 1))
            assert [os.sched_getaffinity(each.process.pid) for each in running.values()] == [core, core]
        running[NN_LSTM].process.kill()
        after = engine_rounds.measured_row(TINY, 1, running, 0.0)
    assert all(engine.process.poll() is not None for engine in running.values())
    assert row["status"] == "ok" and row["ratios"][FAST]["of"] == NN_LSTM
    assert row["times"][FAST]["samples"] == engine_rounds.MIN_REPS
    assert after["status"] == "failed" and "no other engine runs" in after["error"]
    assert "its process ended with status -9" in after["notes"][NN_LSTM]


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not say what ran")
def test_an_engine_rests_until_its_threads_sleep(monkeypatch):
    with engine_rounds.started([FAST], 1) as running:
        engine = running[FAST]
        engine.ask(case=asdict(TINY))
        engine.rest()
        assert engine.ran_ns() == engine.ran_ns()
        times = iter([1, 2, 3, 3, 4])
        monkeypatch.setattr(engine, "ran_ns", lambda: next(times))
        engine.rest()
        assert next(times) == 4


class Scripted:
    """An engine whose times, or errors, are given."""

    def __init__(self, *answers):
        self.answers = iter(answers)
        self.cores = []

    def move_to(self, cores):
        self.cores.append(cores)

    def rest(self):
        self.cores.append("rest")

    def ask(self, **request):
        answer = {"budget_used": 0.5} if "case" in request else next(self.answers)
        return {"times": answer} if isinstance(answer, list) else answer


def row_of(threads=1, **given):
    names = {"nn": NN_LSTM, "fast": FAST, "stored": FAST_STORED, "onnx": ONNX_RUNTIME}
    made = {names[key]: Scripted(*answers) for key, answers in given.items()}
    return engine_rounds.measured_row(TINY, threads, made, 0.0)


def test_a_round_runs_on_the_same_cores_and_the_next_on_others(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 9}, raising=False)
    made = {name: Scripted(*[[1.0]] * 5) for name in (NN_LSTM, FAST)}
    engine_rounds.take_turns(made, 1, 0.0, {})
    assert made[NN_LSTM].cores == made[FAST].cores == [[3], [7], [9], [3], [7]]
    assert engine_rounds.cores_of_round(1, 2) == [7, 9]
    both = Scripted(*[[1.0]] * 5)
    engine_rounds.take_turns({FAST: both}, 2, 0.0, {})
    assert both.cores[:4] == [[3, 7], "rest", [7, 9], "rest"]
    assert sorted(engine_rounds.cores_of_round(4, 4)) == [3, 7, 9]


def test_the_ratio_is_to_the_best_of_the_others():
    row = row_of(nn=[[4.0, 6.0, 5.0]] * 5, onnx=[[3.0]] * 5, fast=[[2.0]] * 5, stored=[[6.0]] * 5)
    assert row["times"][NN_LSTM]["median_s"] == 5.0
    assert row["ratios"][FAST] == {"of": ONNX_RUNTIME, "ratio": 1.5, "low": 1.5, "high": 1.5}
    assert row["ratios"][FAST_STORED]["ratio"] == 0.5
    gone = row_of(nn=[[4.0]] * 5, onnx=[[3.0], {"error": "boom"}], fast=[[2.0]] * 5)
    assert gone["ratios"][FAST]["of"] == NN_LSTM and gone["notes"] == {ONNX_RUNTIME: "boom"}
    lost = row_of(nn=[[4.0]] * 5, fast=[{"error": "bang"}])
    assert (lost["status"], lost["error"]) == ("failed", "bang")


def test_peers_are_shown_and_summed_up(capsys):
    rows = [
        row_of(nn=[[3.0]] * 5, fast=[[2.0]] * 5, stored=[[1.0]] * 5, onnx=[{"error": "not here"}]),
        row_of(nn=[[3.0]] * 5, fast=[[6.0]] * 5, stored=[{"error": "odd"}]),
        row_of(nn=[[3.0]] * 5, fast=[{"error": "bang"}]),
    ]
    summary = tables.summarize_peers(rows)
    plain, stored = summary
    assert plain["geomean"] == pytest.approx((1.5 * 0.5) ** 0.5)
    assert (plain["least"], plain["worst"], plain["worst_of"]) == (0.5, "5,3,4,6", NN_LSTM)
    assert (plain["cells"], plain["missing"], stored["cells"]) == (2, 1, 1)
    result = {
        "schema": schema.SCHEMA,
        "kind": "peers",
        "machine": {"cpu": "a", "flags": [], "cores": 1, "torch": "x", "commit": "dirty"},
        "settings": {"date": "2000-01-01", "variant": "plain"},
        "rates": {},
        "rows": rows,
        "summary": summary,
    }
    schema.validate(result)
    made = report.tables(result)
    assert all(len(line) == len(header) for _, header, lines, _ in made for line in lines)
    terminal.show(made)
    shown = capsys.readouterr().out
    assert "1.50 (1.50-1.50)" in shown and "not here" in shown and "bang" in shown
    assert "2 of 3" in report.markdown(result)


class InThisProcess:
    """An engine as a process of its own would serve it."""

    def __init__(self, name, threads):
        self.server = engines.Server(name, threads)

    def ask(self, **request):
        return self.server.answer(request)

    def move_to(self, cores):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("where", [InThisProcess, pytest.param(engine_rounds.Engine, marks=pytest.mark.sweep)])
def test_the_command_line_runs_the_peers(where, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_rounds, "Engine", where)
    monkeypatch.setattr(engine_rounds, "SHAPES", ((5, 3, 4, 6),))
    peaks = {("float32", "avx2", 1): 1e12}
    monkeypatch.setattr(floor.Machine, "measure_peaks", lambda m, *_: m.peaks.update(peaks))
    arguments = ["--peers", "--threads", "1", "--cell-seconds", "0.01", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    (row,) = json.loads((tmp_path / "latest-peers.json").read_text())["rows"]
    assert {NN_LSTM, FAST, FAST_STORED} <= row["times"].keys()
    assert row["times"].keys() | row["notes"].keys() == engines.ENGINES.keys()


@pytest.mark.filterwarnings("ignore")  # of quantize_dynamic's deprecation
@pytest.mark.parametrize("name", int8_engines.ENGINES)
def test_an_engine_with_int8_weights_is_held_to_its_budget(name, monkeypatch):
    for package in int8_engines.PACKAGES.get(name, ()):
        pytest.importorskip(package)
    server, answer = served(name, Case(6, 2, 5, 7))
    assert 0 <= answer["budget_used"] <= 1 and 0 < answer["relative_error"] < 0.1
    assert len(server.answer({"seconds": 0.0})["times"]) == 1
    right = int8_engines.ENGINES[name]

    def wrong(problem, threads):
        call = right(problem, threads)
        return lambda: tuple(torch.as_tensor(t) + 0.1 for t in call())

    monkeypatch.setitem(int8_engines.ENGINES, name, wrong)
    assert "WrongResult" in served(name, Case(6, 2, 5, 7))[1]["error"]


def test_the_command_line_runs_the_peers_in_int8(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_rounds, "SHAPES", ((5, 3, 4, 6),))
    peaks = {("float32", "avx2", 1): 1e12}
    monkeypatch.setattr(floor.Machine, "measure_peaks", lambda m, *_: m.peaks.update(peaks))
    arguments = ["--peers", "--dtype", "int8", "--threads", "1", "--cell-seconds", "0.01"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "latest-peers-int8.json").read_text())["rows"]
    assert row["dtype"] == "int8" and set(int8_engines.OURS) <= row["ratios"].keys()
    assert row["times"].keys() | row["notes"].keys() == int8_engines.ENGINES.keys()
    text = (tmp_path / "latest-peers-int8.md").read_text()
    assert "us, int8, infer, 1 thread" in text and "largest error of the output" in text


@pytest.mark.filterwarnings("ignore")
def test_lists_of_shapes_in_int8(tmp_path, monkeypatch):
    peaks = {("float32", "avx2", 1): 1e12}
    monkeypatch.setattr(floor.Machine, "measure_peaks", lambda m, *_: m.peaks.update(peaks))
    monkeypatch.setattr(floor.Machine, "bandwidth", lambda *_: 1e10)
    arguments = ["--shapes", "4,2,5,6", "--dtype", "int8", "--threads", "1", "--no-plot"]
    arguments += ["--cell-seconds", "0.01", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    (row,) = json.loads((tmp_path / "latest-int8.json").read_text())["rows"]  # none of training
    assert (row["baseline"], row["candidate"]) == ("quantize_dynamic", "FastLSTM")
    assert row["mode"] == "infer" and row["floor_kind"] == "bytes" and row["budget_used"] <= 1
    with pytest.raises(SystemExit):
        cli.main(["--memory", "--dtype", "int8"])


# A source distribution leaves the results out.
with_results = pytest.mark.skipif(not machines.RESULTS.is_dir(), reason="no results here")


@with_results
def test_the_pages_have_what_was_measured():
    for page, part in machines.made().items():
        found = machines.between(page.read_text())
        assert found == part, "run: python -m benchmarks.machines --write"


@with_results
def test_the_first_lines_have_the_figures_of_recurrent_ppo():
    first = machines.README.read_text().partition("## Install")[0]
    rows = [row for row in machines.load(machines.PPO)["rows"] if row["part"] == "update"]
    for row in rows:
        assert f"{row['ratios']['fast policy']['ratio']:.2f}" in first


def test_runs_stand_under_what_they_ran_on(tmp_path):
    assert machines.runs("recipes", recipe_tables, tmp_path) == "No run has been saved yet.\n"
    times = {name: {"samples": 3, "median_s": 0.25} for name in ("nn.LSTM", "FastLSTM")}
    row = {"what": "a program", "version": "7", "threads": 2, "times": times, "apart": 1e-7}
    row |= {"ratios": {"FastLSTM": {"ratio": 0.5, "low": 0.4, "high": 0.6}}}
    machine = {"cpu": "A", "flags": ["avx2"], "cores": 4, "torch": "2", "load_average": 0.2}
    result = {"machine": machine | {"load_average_after": 1.2}, "rows": [row]}
    for name in ("a-1", "latest"):
        (tmp_path / f"{name}-recipes.json").write_text(json.dumps(result))
    text = machines.runs("recipes", recipe_tables, tmp_path)
    assert text.startswith("A (avx2), 4 cores at a load average of 0.2 to 1.2, torch 2 ([a-1-recipes](")
    assert "| a program | 7 | 0.25 | 0.25 | 0.50 (0.40-0.60) | 1e-07 |" in text
    assert text.count("a program") == 1 and "Recipes, rounds: 3, 2 threads" in text


@pytest.mark.parametrize(("of", "ratio"), [("slow", 3.0), ("best", 2.0)])
def test_a_ratio_beside_any_rival(of, ratio):
    """The row's own beside the best, else that of the medians."""
    times = {name: {"median_s": s} for name, s in (("slow", 6.0), ("best", 5.0), ("own", 2.0))}
    row = {"times": times, "ratios": {"own": {"of": "best", "ratio": 2.0}}}
    assert machines.beside(row, of, "own") == ratio


@with_results
def test_the_picture_is_of_the_results_file():
    image = pytest.importorskip("PIL.Image")
    with image.open(machines.PICTURE) as picture:
        found = picture.text["Description"]
    expected = overview.digest(machines.load(machines.SPEED), *machines.DRAWN)
    assert found == expected, "run: python -m benchmarks.machines --write"


def test_a_picture_tells_what_it_is_of(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    case = {"status": "ok", "dtype": "float32", "threads": 2, "T": 5}
    rows = [
        case | {"mode": mode, "N": N, "H": H, "ratio": N / H}
        for mode in ("infer", "train")
        for N, H in ((1, 3), (1, 4), (7, 3))
    ]
    machine = {"cpu": "A", "flags": ["avx2"], "cores": 4, "torch": "2"}
    result = {"machine": machine, "rows": [*rows, rows[0] | {"status": "failed"}]}
    drawn = overview.points(result, "float32", 2)
    assert drawn["train"] == {1: {3: [1 / 3], 4: [1 / 4]}, 7: {3: [7 / 3]}}
    overview.save_overview(result, "float32", 2, tmp_path / "a.png")
    with image.open(tmp_path / "a.png") as picture:
        assert picture.text["Description"] == overview.digest(result, "float32", 2)
    before = overview.digest(result, "float32", 2)
    rows[0]["ratio"] = 2.0
    assert overview.digest(result | {"rows": rows}, "float32", 2) != before


def test_a_line_of_the_machines_table():
    result = {
        "machine": {"cpu": "A", "flags": ["avx2"], "cores": 4, "limits": {}},
        "settings": {"date": "2000-01-01", "busy": 2},
        "rows": [{"status": "ok", "ratio": r} for r in (0.5, 1.0, 2.0)] + [{"status": "failed"}],
        "summary": [
            {"dtype": "float32", "mode": "infer", "threads": 4, "geomean": 1.5, "least": 0.5},
            {"dtype": "float32", "mode": "infer", "threads": 1, "geomean": 2.0, "least": 2.0},
            {"dtype": "float32", "mode": "train", "threads": 1, "cells": 1, "failed": 1},
        ],
    }
    line = machines.line_of("a-1.json", result)
    assert line[:5] == ["A (avx2)", "4", "beside 2 busy processes", "3", "1"]
    assert line[5:] == ["2.00, 1.50 (0.50)", "", "", "", "[a-1](../benchmarks/results/a-1.md)"]


def test_only_runs_of_the_core_shapes_are_machines(tmp_path):
    def put(name, **changes):
        settings = {"variant": "plain", "control": False, "date": "2000-01-01"}
        settings |= changes.pop("settings", {})
        body = {"kind": "speed", "machine": {"cpu": "A"}, "settings": settings} | changes
        (tmp_path / f"{name}.json").write_text(json.dumps(body))

    put("kept")
    put("latest")
    put("peers", kind="peers")
    put("packed", settings={"variant": "packed"})
    put("control", settings={"control": True})
    assert [name for name, _ in machines.measured(tmp_path)] == ["kept.json"]


@pytest.mark.parametrize(
    ("folder", "above"),
    [
        ("common", "cpu gpu"),
        ("cpu", "gpu"),
        ("gpu", "cpu"),
        ("rl", "cpu gpu recipes"),
        ("recipes", "cpu gpu rl"),
    ],
)
def test_folders_import_what_is_below_them(folder, above):
    sources = sorted((ROOT / "benchmarks" / folder).rglob("*.py"))
    assert sources
    for source in sources:
        named = set(re.findall(r"(?:from|import) benchmarks\.(\w+)", source.read_text()))
        assert not named & set(above.split()), f"{source.name} imports what is above {folder}"
