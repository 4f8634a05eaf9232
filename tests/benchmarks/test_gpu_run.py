"""`./run gpu` from end to end, with the CPU in the GPU's place; and its command line."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import types

import pytest
import torch

from benchmarks.common import schema, stand_ins
from benchmarks.common.machine import ROOT
from benchmarks.gpu import build, cli, costs, device, host, plan, verdicts
from benchmarks.gpu.cells import edge_cases, grid_cases
from benchmarks.gpu.journal import Journal, last_stamp

# Of every part a little: each starts processes that import torch.
PARTS = ["build", "probe", "verdicts", "bench", "bf16", "families", "host", "edges"]
PARTS += ["tests", "sanitizer", "report"]
TESTS = "ops_repeat or results_repeat and bfloat16 and (plain or cuda) or one_unit and float32"
SOME = ["--tests", TESTS, "--cells", "2", "--minutes", "25"]


def run_dry(folder, *arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)


def kept_results():
    return sorted((ROOT / "benchmarks" / "results").iterdir())


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The folder that a dry run has left, and what it printed."""
    folder, before = tmp_path_factory.mktemp("gpu"), kept_results()
    done = run_dry(folder, *PARTS, *SOME)
    assert done.returncode == 0, done.stdout + done.stderr
    assert kept_results() == before
    return folder, done.stdout


@pytest.fixture(scope="module")
def result(dry):
    return json.loads((dry[0] / "dry-run.json").read_text())


@pytest.mark.slow
@pytest.mark.sweep
def test_it_leaves_few_files_that_say_what_they_are(dry, result):
    folder, _ = dry
    files = {path.name for path in folder.iterdir()}
    assert files - {"logs"} == {
        "dry-run.json", "dry-run.md", "dry-run.png", "journal.jsonl", "logs.txt",
    }  # fmt: skip
    assert "===== bench-bf16.log" in (folder / "logs.txt").read_text()
    schema.validate(result)
    assert result["kind"] == "gpu"
    assert result["settings"]["dry_run"]
    assert "Nothing was measured" in (folder / "dry-run.md").read_text()
    assert (folder / "dry-run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.sweep
def test_every_part_is_done(dry, result):
    states = {part: each["state"] for part, each in result["parts"].items()}
    expected = ["build", "probe", "verdicts", "bench bf16", "families", "host", "edges", "tests"]
    expected.append("sanitizer")
    assert list(states) == expected
    assert states == dict.fromkeys(expected, "done")
    for line in ("setup.py build_ext", "--tool memcheck", "--tool racecheck", "--tool initcheck"):
        assert line in dry[1]


@pytest.mark.slow
@pytest.mark.sweep
def test_cells_are_checked_and_timed_in_every_lane(result):
    assert {row["part"] for row in result["rows"]} == {"bench bf16", "edges"}
    for row in result["rows"]:
        assert (row["status"], row["error"]) == ("ok", None)
        assert max(row["T"], row["N"]) <= 6
        lanes = {"cuda", "cuda graph", "triton", "triton graph"}
        others = set(row["ratios"]) - lanes
        assert lanes < set(row["times"])
        assert all(name.startswith("nn.LSTM") for name in others)
        assert set(row["floor_share"]) == set(row["times"]) > lanes
        assert all(0 <= used <= 1 for used in row["budget_used"].values())
        assert {"cuda", "triton"} < set(row["budget_used"])
    assert {entry["mode"] for entry in result["summary"]} == {"infer", "train"}
    assert "bf16" in result["rates"]


@pytest.mark.slow
@pytest.mark.sweep
def test_tests_and_sanitizer_are_there(result):
    outcomes = {each["outcome"] for each in result["tests"].values()}
    assert outcomes == {"passed"}
    assert any("repeat_bit_by_bit" in nodeid for nodeid in result["tests"])
    assert len(result["sanitizer"]) == 8 + 2
    assert {row["said"] for row in result["sanitizer"]} == {"a dry run: not started"}


@pytest.mark.slow
@pytest.mark.sweep
def test_every_family_has_a_verdict_and_a_time(result):
    words = {word for passes in result["verdicts"].values() for word in passes.values()}
    assert words == {"ok"}
    families = {key.split("/")[1] for key in result["verdicts"]}
    assert families == set(verdicts.FAMILIES)
    assert [row["family"] for row in result["families"]] == ["cluster", "grid"]  # of --cells 2
    assert all(row["us"] > 0 and row["predicted_us"] > 0 for row in result["families"])
    assert len(result["host"]) == len(list(host.shapes()))


@pytest.mark.slow
@pytest.mark.sweep
def test_what_the_kernels_choice_assumes_is_asked_of_the_device(dry, result):
    asked = {answer["question"] for answer in result["probe"]}
    # One constant of costs.h after the other; the launch's needs CUDA graphs.
    assert {"all-gather in a cluster, part of a step", "mma.sync of a scheduler"} < asked
    assert {"all-gather over the grid, a counter", "read from shared memory"} < asked
    assert "from asking global memory until it answers" in asked
    assert all(answer["value"] > 0 for answer in result["probe"])
    assert "| clusters at once, a block to a multiprocessor | 16 blocks | 8 |" in (dry[0] / "dry-run.md").read_text()


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, and none is on PATH")
def test_the_probe_compiles_for_gpus(tmp_path):
    sources = map(str, sorted(costs.SOURCES.glob("*.cu")))
    command = ["nvcc", "-std=c++17", "-arch=sm_90a", "-Xptxas=-v", f"-I{ROOT / 'csrc'}"]
    command += ["-o", str(tmp_path / "probe"), *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " 0 bytes spill stores" in done.stderr


@pytest.mark.slow
@pytest.mark.sweep
def test_what_is_finished_is_not_run_again(dry, monkeypatch, capsys):
    path = dry[0] / "journal.jsonl"
    journal = Journal(path, last_stamp(path))
    context = plan.Context(journal, dry[0], True, time.time() + 60, "80", most_cells=2)
    monkeypatch.setattr(plan, "drive", None)
    assert plan.run_worker(context, "bench bf16") == "done"
    assert "are in the journal" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.sweep
def test_the_backends_stand_ins_are_named(dry):
    """The simulated CUDA sources where they can be built, and never silently something else."""
    log = (dry[0] / "logs" / "bench-bf16.log").read_text()
    assert "dry run: {'cuda': '" in log
    if "'cuda': 'simt'" not in log:
        assert "the CUDA sources do not run here" in log or "no C++ compiler" in log


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(device, "missing_gpu", lambda: "none is here")
    monkeypatch.delenv("OUT", raising=False)


def test_without_a_gpu_it_says_what_to_do(no_gpu, capsys):
    assert cli.main([]) == cli.NO_GPU == 2
    said = capsys.readouterr().err
    assert "none is here" in said
    assert "--dry-run" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bech", "'bech', expected one of build"),
        ("bench bf17", "'bf17'"),
        ("bf16", "'bf16'"),
        ("bench --slice 3/2", "expected k from 1 to n"),
        ("bench --slice half", "expected k/n"),
        ("--minutes 0", "more than 0"),
        ("pack", "expected one architecture"),
        ("--dry-run --out benchmarks/results", "a dry run measures nothing"),
    ],
)
def test_wrong_arguments(arguments, message, no_gpu, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_library_is_used_as_it_is_while_it_is_that_of_its_stamp(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "library.so")
    monkeypatch.setattr(build, "STAMP", tmp_path / "gpu" / "library.json")
    assert not build.prebuilt("90a")
    build.LIBRARY.write_bytes(b"for 90a")
    build.note("90a")
    assert build.prebuilt("90a")
    assert not build.prebuilt("100a")

    said, context = [], types.SimpleNamespace(architecture="90a", dry=False)
    context.say = said.append
    assert build.run(context) == "done"
    assert "used as it is" in said[-1]

    with monkeypatch.context() as patch:
        patch.setattr(build, "SOURCES", (*build.SOURCES, "README.md"))
        assert not build.prebuilt("90a")
    build.LIBRARY.write_bytes(b"another")
    assert not build.prebuilt("90a")


def test_a_probe_is_used_as_it_is_while_it_is_that_of_its_stamp(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "PROGRAM", tmp_path / "probe")
    monkeypatch.setattr(costs, "STAMP", tmp_path / "probe.json")
    monkeypatch.setattr(costs, "compile_for", lambda architecture: f"compiled for {architecture}")
    context = types.SimpleNamespace(architecture="90a")
    assert costs.compiled(context) == "compiled for 90a"
    costs.PROGRAM.write_bytes(b"for 90a")
    costs.STAMP.write_text(json.dumps(costs.stamp("90a")))
    assert costs.compiled(context) == costs.PROGRAM
    assert os.access(costs.PROGRAM, os.X_OK)
    assert not costs.prebuilt("100a")
    with monkeypatch.context() as patch:
        patch.setattr(costs, "READ", (*costs.READ, "README.md"))
        assert not costs.prebuilt("90a")
    costs.PROGRAM.write_bytes(b"another")
    assert not costs.prebuilt("90a")


def test_pack_builds_for_a_gpu_that_is_not_here(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "STAMP", tmp_path / "gpu" / "library.json")
    monkeypatch.setattr(build, "locked", contextlib.nullcontext)
    told, probes = {}, []
    monkeypatch.setattr(costs, "pack", lambda architecture: probes.append(architecture) or 0)

    def setup(line, *, env, **_):
        told.update(env)
        return types.SimpleNamespace(returncode=0 if "100a" not in told.values() else 1)

    monkeypatch.setattr(build.subprocess, "run", setup)
    monkeypatch.setattr(build, "stamp", lambda architecture: {"architecture": architecture})
    assert cli.main(["pack", "90a"]) == 0
    said = capsys.readouterr().out
    assert str(build.LIBRARY) in said
    assert str(build.STAMP) in said
    assert json.loads(build.STAMP.read_text()) == {"architecture": "90a"}
    assert told["FASTLSTM_CUDA_ARCHS"] == "90a"
    assert {told[f"FASTLSTM_{name}"] for name in ("TRAP_HANGS", "CUDA", "AVX512")} == {"1"}
    assert cli.main(["pack", "100a"]) == 1
    assert probes == ["90a"]


def test_a_report_needs_a_journal(no_gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "WORK", tmp_path / "none")
    assert cli.main(["report", "--out", str(tmp_path)]) == 2
    assert "no run to report on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ({"build": "done", "tests": "done"}, 0),
        ({"build": "done", "tests": "failed", "edges": "cut"}, 1),
        ({"build": "done", "tests": "cut"}, 3),
        ({"edges": "skipped"}, 3),
    ],
)
def test_exit_status_is_honest(states, status):
    assert cli.status_of(states) == status


def test_the_shell_command_reaches_it():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, and the command would run on it")
    here = os.path.dirname(sys.executable)  # the first python3 that is found
    env = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    for name in ("OUT", "FASTLSTM_PYTHON"):
        env.pop(name, None)
    done = subprocess.run(["./run", "gpu", "tests"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "no GPU to run on" in done.stderr
    assert "--dry-run" in done.stderr


def test_dry_sizes_are_small_and_keep_the_grid_apart():
    shrunk = [stand_ins.shrink(case) for case in grid_cases()]
    assert len(set(shrunk)) == len(shrunk) == 84
    for case in [*shrunk, *map(stand_ins.shrink, edge_cases())]:
        assert case.T <= 6
        assert case.N <= 5
        assert case.H <= 24
        assert case.P < case.H
