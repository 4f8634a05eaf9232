"""What the benchmark harness leaves: results file, tables, picture, exit status, memory rows."""

import copy
import json

import pytest
import torch
from pairs import needs_library

from benchmarks.common import machine, schema, shapes, terminal, timing
from benchmarks.common.peers import PEERS
from benchmarks.common.shapes import Case
from benchmarks.cpu import busy, cli, floor, memory, options, plots, report, sweep
from fastlstm.backends import native

TINY = Case(5, 3, 4, 6)


@pytest.fixture(scope="module")
def result():
    cells = shapes.all_cells([TINY, Case(4, 1, 5, 5)], ["float32", "bfloat16"], ["infer", "train"], [1])
    rows = list(sweep.run(cells, candidate=sweep.CONTROL, per_cell=0.0))
    machine = floor.Machine(peaks={("float32", "avx2", 1): 1e11, ("bfloat16", "amx", 1): 2e11})
    sweep.add_floors(rows, machine)
    return {
        "schema": schema.SCHEMA,
        "kind": "speed",
        "machine": {"cpu": "a | b", "flags": [], "cores": 1, "torch": "x", "commit": "dirty"},
        "settings": {"date": "2000-01-01", "variant": "plain"},
        "rates": machine.as_dict(),
        "rows": rows,
        "summary": report.summarize(rows),
    }


def test_result_is_valid_and_survives_json(result, tmp_path):
    schema.write(result, tmp_path / "deep" / "r.json")
    again = json.loads((tmp_path / "deep" / "r.json").read_text())
    schema.validate(again)
    assert len(again["rows"]) == 8
    assert all(row["times"][peer]["samples"] >= timing.MIN_REPS for row in again["rows"] for peer in row["times"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.pop("machine"), "no 'machine'"),
        (lambda r: r.update(schema=99), "schema 99"),
        (lambda r: r["rows"][0].pop("ratio"), r"rows\[0\]: no 'ratio'"),
        (lambda r: r["rows"][1].update(T="5"), r"rows\[1\]: 'T' is '5', expected int"),
        (lambda r: r["rows"][0].update(status="maybe"), "maybe"),
        (lambda r: r["rows"][0]["times"]["nn.LSTM"].pop("median_s"), "no 'median_s'"),
        (lambda r: r["rows"][0].update(status="failed", error=None), "error"),
    ],
)
def test_invalid_result_is_named(result, spoil, message):
    broken = copy.deepcopy(result)
    spoil(broken)
    with pytest.raises(ValueError, match=message):
        schema.validate(broken)


def test_summary_names_the_worst_and_the_targets():
    cell = {
        "T": 8,
        "N": 1,
        "I": 4,
        "H": 4,
        "L": 1,
        "D": 1,
        "P": 0,
        "variant": "plain",
        "device": "cpu",
        "candidate": sweep.CANDIDATE,
    }
    config = {"dtype": "float32", "mode": "train", "threads": 2}
    rows = [
        {**cell, **config, "status": "ok", "ratio": 2.0},
        {**cell, **config, "H": 9, "status": "ok", "ratio": 0.5},
        {**cell, **config, "status": "failed", "error": "boom"},
        {**cell, **config, "threads": 1, "status": "failed", "error": "boom"},
    ]
    alone, entry = report.summarize(rows)
    assert alone == {"dtype": "float32", "mode": "train", "threads": 1, "cells": 1, "failed": 1}
    assert entry["geomean"] == pytest.approx(1.0)
    assert (entry["least"], entry["worst"]) == (0.5, "8,1,4,9")
    assert (entry["target"], entry["least_allowed"]) == (1.3, 0.9)
    assert (entry["cells"], entry["failed"]) == (3, 1)
    line = report.summary_table([alone, entry])[2][1]
    assert "1.3 missed" in line
    assert "2 of 3" in line


def test_tables_show_every_row_with_and_without_rich(result, monkeypatch, capsys):
    broken = copy.deepcopy(result)
    broken["rows"][0] |= {"status": "failed", "error": "boom [bold]|"}
    made = report.tables(broken)
    assert sum(len(lines) for _, _, lines, _ in made[:-2]) == len(broken["rows"])
    assert all(len(line) == len(header) for _, header, lines, _ in made for line in lines)
    terminal.show(made)
    assert "boom [bold]|" in capsys.readouterr().out
    monkeypatch.setattr(terminal, "rich", None)
    terminal.show(made)
    assert "boom [bold]|" in capsys.readouterr().out
    assert "boom [bold]\\|" in report.markdown(broken)


def test_one_figure_with_its_own_interval_is_shown(result):
    """In every table the ratio is the results' own and lies in the interval beside it."""
    by_place = {(row["dtype"], row["mode"], report.shape_text(row)): row for row in result["rows"]}
    shown = 0
    for title, header, lines, _ in report.tables(result):
        if "95 % interval" not in header:
            continue
        dtype, mode, _ = title.split(", ")
        for line in lines:
            cells = dict(zip(header, line, strict=True))
            row = by_place[dtype, mode, cells["T,N,H"]]
            low, high = cells["95 % interval"].split("-")
            assert float(low) <= float(cells["ratio"]) <= float(high)
            assert cells["ratio"] == f"{row['ratio']:.2f}"
            shown += 1
    assert shown == len(result["rows"])
    assert all("paired" not in row for row in result["rows"])


def test_the_head_has_the_machine_and_its_rates(result, capsys):
    machine, rates = report.head(result)[:2]
    assert "a | b, 1 cores" in machine
    assert "bfloat16 by amx 200 (1 thread) GF/s" in rates and "by avx2 100 (1 thread)" in rates
    terminal.show([], report.head(result))
    assert "bfloat16 by amx" in capsys.readouterr().out
    assert report.rate_lines({}) == []


def test_plot_is_written(result, tmp_path):
    pytest.importorskip("matplotlib")
    assert plots.save_plot(result, tmp_path / "r.png") is None
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert plots.save_plot({**result, "rows": []}, tmp_path / "none.png") == "no cell has a ratio"


def test_command_line_runs_a_shape_and_writes_its_files(tmp_path, capsys):
    arguments = [
        "--shapes",
        "4,2,8",
        "--dtype",
        "float32",
        "--threads",
        "1",
        "--control",
        "--no-plot",
        "--cell-seconds",
        "0.01",
    ]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest-control.json",
        "latest-control.md",
    ]
    schema.validate(json.loads((tmp_path / "latest-control.json").read_text()))
    assert "geomean" in capsys.readouterr().out


@pytest.fixture
def given_rates(monkeypatch):
    """test_benchmarks.py measures the machine's rates, and so does the run above."""
    peaks = {("float32", "avx2", 1): 1e12}
    monkeypatch.setattr(floor.Machine, "measure_peaks", lambda m, *_: m.peaks.update(peaks))


def test_command_line_reports_a_failed_cell_and_says_so(tmp_path, capsys, monkeypatch, given_rates):
    monkeypatch.setattr(PEERS["FastLSTM"], "reject", lambda *_: "not built here")
    arguments = [
        "--shapes",
        "4,2,8",
        "--dtype",
        "float32",
        "--mode",
        "infer",
        "--threads",
        "1",
        "--no-plot",
    ]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 1
    assert "not built here" in capsys.readouterr().err
    assert json.loads((tmp_path / "latest.json").read_text())["rows"][0]["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--threads 0", "expected positive whole numbers"),
        ("--shapes 1,2", "expected T,N,H"),
        ("--seconds -1", "positive number of seconds"),
        ("--seconds 0.0001", "too short"),
        ("--quick --full", "not allowed with"),
        ("--full --longest 1e-9", "leaves out every cell"),
        ("--quick --longest 1", "goes with --full"),
        ("--quick --busy -1", "expected a number of processes"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@needs_library
def test_the_full_list_without_its_longest_beside_other_work(tmp_path, monkeypatch, given_rates):
    """What a run was kept to is in its name and under its title."""
    tiny = [Case(T, 1, 8, 8) for T in (4, 8, 10**6)] + [Case(4, 2, 8, 8)]
    monkeypatch.setattr(shapes, "core_cases", lambda: tiny)
    monkeypatch.setitem(machine.os.environ, "FASTLSTM_CPU_ISA", native.cpu_isa())
    started = []
    monkeypatch.setattr(busy.subprocess, "Popen", spying(busy.subprocess.Popen, started))
    arguments = "--full --longest 1 --busy 2 --control --no-plot"
    arguments += " --dtype float32 --mode infer --threads 1"
    assert cli.main([*arguments.split(), "--cell-seconds", "0.01", "--out", str(tmp_path)]) == 0
    assert len(started) == 2 and all(process.poll() is not None for process in started)
    name = f"latest-{native.cpu_isa()}-control-busy"
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(result["rows"]) == 3
    assert cli.stem(cli.build_parser().parse_args(["--full"]), {"limits": {}}) == "latest-full"
    text = (tmp_path / f"{name}.md").read_text()
    assert "Left out: 1 cells" in text and "kept a core busy meanwhile: 2" in text
    assert f"FASTLSTM_CPU_ISA={native.cpu_isa()}" in text and "| N = 1 | N = 2 |" in text


def spying(popen, started):
    def start(command, **options):
        process = popen(command, **options)
        if busy._LOOP in command:
            started.append(process)
        return process

    return start


def test_thread_counts():
    assert options.thread_counts("3,1,3") == [1, 3]
    assert torch.get_num_threads() in options.thread_counts("1,all")


@pytest.mark.sweep
def test_memory_of_a_step_grows_with_its_length():
    if memory.unsupported():
        pytest.skip(memory.unsupported())
    short, long = (memory.in_fresh_process("nn.LSTM", Case(T, 32, 64, 64), "float32", 1) for T in (64, 512))
    # Output, gates and cell of every step are kept for backward: at least 6·H float32 numbers.
    assert long - short > (512 - 64) * 32 * 64 * 6 * 4 / 2


def test_memory_failure_is_a_row(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(memory, "in_fresh_process", fail)
    (row,) = memory.run([TINY], ["float32"], 1, sweep.CONTROL)
    assert (row["status"], row["error"]) == ("failed", "RuntimeError: no such thing")
    assert "no such thing" in str(report.memory_table([row]))
