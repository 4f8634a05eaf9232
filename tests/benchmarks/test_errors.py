"""The table of errors: what it measures, and that a mistake would show in it."""

import json

import pytest
import torch
from pairs import needs_library

from benchmarks.cpu import cli, errors
from benchmarks.cpu.errors import NN_LSTM, Contender
from fastlstm.ops import layer as layer_ops


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"T": 4, "N": 2, "I": 3, "H": 5, "DRAWS": 1}.items():
        monkeypatch.setattr(errors, name, value)
    monkeypatch.setitem(errors.PROBLEMS, "projection", {"proj_size": 2})


@needs_library
def test_errors_are_of_the_size_of_a_rounding():
    for backend in ("cpu", "reference", NN_LSTM):
        rows = {row["kind"]: row for row in errors.rows_of(Contender(backend, "cpu"))}
        int8 = {errors.INT8, errors.INT8_WEIGHTS}
        stored = {errors.STORED, *int8} if backend == "cpu" else set()
        assert set(rows) == {"float64", "float32", "bfloat16", "float16"} | stored
        for kind, row in rows.items():
            if backend == NN_LSTM and kind == "float16" and row["status"] == "failed":
                continue  # some CPUs have no primitive for it
            assert row["status"] == "ok", row
            assert ("gradients" in row) == (kind not in int8)
            for group in ("results", "gradients") if kind not in int8 else ("results",):
                exact = backend == "reference" and kind == "float64"
                assert (row[group] == 0) if exact else 0 < row[group] < 100 * errors.ROUNDOFF[kind]


@pytest.mark.filterwarnings("ignore")  # of quantize_dynamic's deprecation
def test_int8_is_at_or_below_others_int8(monkeypatch):
    for name, value in {"T": 6, "N": 3, "I": 24, "H": 40}.items():
        monkeypatch.setattr(errors, name, value)
    monkeypatch.setattr(errors, "PROBLEMS", {"one layer": {}})
    ours = errors.measure(Contender("cpu", "cpu"), errors.INT8)["results"]
    for name in errors.QUANTISED:
        (row,) = errors.rows_of(Contender(name, "cpu"))
        if row["status"] == "failed":
            assert "onnx" in row["error"]
            continue
        assert row["kind"] == errors.INT8 and "gradients" not in row
        assert errors.cells(row)[1] == "none"
        assert 0 < ours <= row["results"]


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_wrong_number_shows_and_is_named(wrong, monkeypatch):
    right = layer_ops.layer

    def layer(family, args, save_tape):
        results = right(family, args, save_tape)
        if args[0].dtype == torch.float64:  # the oracle's, and so for all the same
            return results
        return (results[0], results[1] + wrong, *results[2:])

    monkeypatch.setattr(layer_ops, "layer", layer)
    row = errors.measure(Contender("reference", "cpu"), "float32")
    assert not row["results"] < 1e-4
    assert row["worst"]["results"].startswith("h_n, ")


@needs_library
def test_what_cannot_run_is_a_row_with_its_reason():
    (row,) = errors.in_fresh_process(Contender("cpu", "cpu", "avx3"))
    assert row["status"] == "failed"
    assert row["error"].startswith("fastlstm: FASTLSTM_CPU_ISA=avx3: this machine has ")
    assert errors.table_rows([row]) == [("all", "cpu (avx3)", row["error"], "")]


def test_the_command_writes_the_table(tmp_path, monkeypatch, capsys):
    found = [Contender("reference", "cpu"), Contender("triton", "simulated")]
    failed = {"backend": "triton", "where": "simulated", "isa": "", "kind": "all"}
    failed |= {"status": "failed", "error": "no Triton"}
    monkeypatch.setattr(errors, "contenders", lambda: found)
    monkeypatch.setattr(
        errors,
        "in_fresh_process",
        lambda c: list(errors.rows_of(c)) if c.backend == "reference" else [failed],
    )
    assert cli.main(["--errors", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "latest-errors.json").read_text())
    assert result["kind"] == "errors"
    lines = (tmp_path / "latest-errors.md").read_text().splitlines()
    assert "| all | triton (its kernels run on the CPU) | no Triton |  |" in lines
    assert sum(line.startswith("| float32 | reference | ") for line in lines) == 1
    assert "largest relative error" in capsys.readouterr().out
