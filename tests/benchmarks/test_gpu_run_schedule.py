"""What ./run gpu does in eight minutes, and what it does when a family of kernels is wrong or
hangs."""

import os
import time
import types

import pytest
from cuda_kinds import family as simt

from benchmarks.common.shapes import Case
from benchmarks.gpu import cli, drive, forced, host, measure, plan, report, verdicts
from benchmarks.gpu.cells import GpuCell
from benchmarks.gpu.contenders import Contender
from benchmarks.gpu.device import DryDevice
from benchmarks.gpu.journal import Journal

FIRST_RUN = plan.PARTS[: plan.PARTS.index("edges") + 1]


def test_eight_minutes_have_room_for_what_is_planned():
    planned = [plan.PLANNED_SECONDS[part] for part in FIRST_RUN if part != "build"]
    assert sum(planned) + plan.REPORT_SECONDS <= 60 * plan.MINUTES


@pytest.mark.parametrize("part", [p for p in FIRST_RUN if p not in ("build", "probe")])
def test_each_part_is_expected_to_end_in_time(part):
    assert plan.expected_seconds(part, 0.5) <= plan.PLANNED_SECONDS[part]


def test_the_parts_get_what_is_planned_for_them():
    shares = {part: plan.share_of(part, plan.PARTS, 480.0) for part in FIRST_RUN[1:]}
    assert shares == pytest.approx({part: plan.PLANNED_SECONDS[part] for part in FIRST_RUN[1:]})
    # Alone with one other, a part gets what the rest leave.
    assert plan.share_of("host", ["host", "edges"], 480.0) > 200


def test_verdicts_come_before_anything_is_timed():
    order = list(plan.PARTS)
    timed = [order.index(part) for part in plan.timed_parts()]
    assert order.index("verdicts") < min(timed)
    assert order.index("tests") > order.index("edges")


def test_every_family_dtype_direction_and_pass_has_verdicts():
    every = [item for group in verdicts.groups(False) for item in verdicts.items(*group, False)]
    assert {item.family for item in every} == set(verdicts.FAMILIES)
    for family in verdicts.FAMILIES:
        of = [item for item in every if item.family == family]
        assert {(i.T, i.N, i.D) for i in of} == {(T, N, D) for T in (6, 40) for N in (1, 9, 17) for D in (1, 2)}
        assert {i.kind for i in of} >= {"bf16", "fp16", "tf32", "fp32"}
    assert len({item.key for item in every}) == len(every)


def passes(word):
    return {"passes": dict.fromkeys(verdicts.PASSES, word)}


def test_what_was_wrong_or_hung_is_left_out_of_the_rest():
    found = {
        "verdicts/cluster/bf16/T6-N1-D1-H48": passes("ok"),
        "verdicts/grid/bf16/T6-N1-D1-H700": passes("hang: no answer in 10 s"),
        "verdicts/step, projected/fp32/T6-N1-D1-H75": passes("not possible"),
        "verdicts/stack/fp32/T6-N1-D1-H24": passes("wrong: output is off"),
    }
    assert verdicts.bad_families(found) == ["grid"]
    table = verdicts.table(found)
    assert ["cluster", "bf16", "ok 1", "ok 1", "ok 1"] in table
    assert ["step, projected", "fp32", *["not possible"] * 3] in table
    assert table[1][2].startswith("hang")


@pytest.fixture
def zygote(tmp_path, monkeypatch):
    """Forks groups that do what a test says, under a short watch."""
    monkeypatch.setattr(verdicts, "DRY_STALL_SECONDS", 4.0)
    journal = Journal(tmp_path / "journal.jsonl", "a|b")

    def run(work, waiting, processes):
        monkeypatch.setattr(verdicts, "judge", work)
        verdicts.Zygote(journal, "cpu", True, time.time() + 120).run(list(waiting), processes)
        return journal.latest("verdict")

    return run


def test_a_hang_costs_its_family_and_seconds(zygote):
    def judge(item, device):
        while item.family == "grid" and item.D == 2:
            time.sleep(0.05)
        return dict.fromkeys(verdicts.PASSES, "ok")

    # One at a time, so that the family's other dtype has its turn when the hang has been seen.
    groups = [("grid", "bf16"), ("step", "bf16"), ("grid", "fp16"), ("cluster", "bf16")]
    found = zygote(judge, groups, processes=1)
    words = {key: record["passes"]["tape"] for key, record in found.items()}
    (hung,) = [key for key, word in words.items() if word.startswith("hang")]
    assert "/grid/bf16/" in hung
    assert not any("/grid/fp16/" in key for key in words)
    for family in ("step", "cluster"):
        of = [word for key, word in words.items() if f"/{family}/bf16/" in key]
        assert of == ["ok"] * len(verdicts.items(family, "bf16", True))


def test_a_crash_is_the_verdict_of_the_call_that_it_ended(zygote):
    def judge(item, device):
        if item.D == 2:
            os._exit(3)
        return dict.fromkeys(verdicts.PASSES, "ok")

    found = zygote(judge, [("step", "bf16")], processes=2)
    words = [record["passes"]["backward"] for record in found.values()]
    assert words[0] == "ok" and words[1].startswith("crash")


@pytest.mark.skipif(simt.load() is not None, reason=str(simt.load()))
@pytest.mark.parametrize("kind", ["bf16", "fp64"])
@pytest.mark.parametrize("family", ["cluster", "step", "step, projected"])
def test_a_verdict_is_reached(family, kind, monkeypatch):
    """By the kernels on the CPU, as a dry run reaches it."""
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "auto")
    H, P, _ = verdicts.FAMILIES[family]
    found = verdicts.judge(verdicts.Item(family, kind, 2, 17, 1, min(H, 40), min(P, 12)), "cpu")
    possible = kind == "bf16" or family != "cluster"
    assert found == dict.fromkeys(verdicts.PASSES, "ok" if possible else "not possible")


def test_a_wrong_result_is_named():
    import torch

    oracle = {"output": torch.ones(3, dtype=torch.float64)}
    base = {"output": torch.ones(3) + 1e-3}
    assert verdicts.said(base, base, oracle, 2.0**-8, 64) == "ok"
    for wrong in (torch.ones(3) + 0.1, torch.full((3,), float("nan"))):
        said = verdicts.said({"output": wrong}, base, oracle, 2.0**-8, 64)
        assert said.startswith("wrong: output")


def test_nn_lstm_is_measured_once_for_a_gpu_and_its_libraries(tmp_path, monkeypatch):
    from benchmarks.common.peers import TorchLSTM

    path = tmp_path / "journal.jsonl"
    first, later = Journal(path, "one|gpu|2.13"), Journal(path, "two|gpu|2.13")
    peers = [Contender("nn.LSTM", TorchLSTM()), Contender("cuda", TorchLSTM())]
    monkeypatch.setattr(measure, "contenders_of", lambda cell: peers)
    cell = GpuCell(Case(5, 3, 8, 8), "fp32", "infer")
    bench = measure.make_bench(DryDevice(), cell, cell.case)
    marked = []
    given = {"seconds": 0.0, "product_rate": 1e12, "exclude": {}, "mark": marked.append}
    row, of_torch = measure.run_cell(bench, cell, **given)
    first.append("baseline", "cell", **of_torch)
    marked.clear()
    known = later.lasting("baseline")["cell"]
    again, kept = measure.run_cell(bench, cell, known=known, **given)
    assert "nn.LSTM" not in marked and {"cuda", "cuda graph", "timing"} <= set(marked)
    assert again["times"]["nn.LSTM"] == row["times"]["nn.LSTM"]
    assert set(again["ratios"]) == {"cuda", "cuda graph"}
    assert again["notes"]["nn.LSTM"] == "measured in an earlier run"
    assert kept["times"] == of_torch["times"]
    assert not Journal(path, "two|another gpu|2.13").lasting("baseline")


def test_a_worker_is_given_as_long_as_what_it_does_may_take():
    mark = {"contender": "cuda", "at": time.time()}
    assert plan.patience(mark) <= 20 < plan.patience(mark | {"contender": "triton graph"})
    assert plan.patience(None) == drive.STALL_SECONDS


def test_a_dry_run_fails_where_a_part_could_not_have_run():
    states = {"probe": "skipped", "host": "done"}
    assert cli.status_of(states) == cli.INCOMPLETE
    assert cli.status_of(states, dry=True) == cli.FAILED


def test_logs_are_gathered_while_a_run_goes_on(tmp_path):
    folder, target = tmp_path / "logs", tmp_path / "out" / "logs.txt"
    folder.mkdir()
    finish = report.stream_logs(folder, target, 0.05)
    (folder / "verdicts.log").write_text("first")
    limit = time.time() + 10
    while time.time() < limit and not (target.exists() and "first" in target.read_text()):
        time.sleep(0.02)
    assert "first" in target.read_text()
    (folder / "verdicts.log").write_text("last")
    finish()
    assert "last" in target.read_text()


def test_the_borders_are_measured_beside_predicted():
    assert len(list(forced.calls())) == 2 * 3 * len(forced.BORDERS)
    assert len({forced.key_of(*call) for call in forced.calls()}) == len(list(forced.calls()))


def test_the_host_benchmark_has_the_calls_that_have_targets():
    shapes = list(host.shapes())
    assert {(L, backward) for _, L, D, T, backward in shapes if D == 1} == set(host.TARGETS)
    assert len({name for name, *_ in shapes}) == len(shapes)
    row = {"shape": shapes[0][0], "fast_us": 12.4, "target_us": 40.0}
    assert host.line(row).split("|")[2:5] == ["       12 ", "        - ", "     40 "]


def test_a_run_whose_verdicts_cannot_begin_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(plan.sanitizer, "exchanges", lambda context: [])
    context = types.SimpleNamespace(
        journal=Journal(tmp_path / "journal.jsonl", "s"),
        logs=tmp_path / "logs",
        dry=True,
        stop=time.time() + 30,
        say=lambda text: None,
        start=lambda command, env, out: drive.execute(["/bin/false"], env, out),
    )
    assert plan.run_verdicts(context) == "failed"
