"""What a GPU run times, what it holds to be right, and what it makes of what tools print."""

import math
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.common import check
from benchmarks.common.peers import Problem, TorchLSTM
from benchmarks.common.precision import PRECISIONS, fp32_precision
from benchmarks.common.shapes import Case
from benchmarks.gpu import (
    build,
    cells,
    contenders,
    device,
    floor,
    plan,
    profile,
    sanitizer,
    suite,
    verify,
)
from benchmarks.gpu.cells import GpuCell, cells_of
from benchmarks.gpu.contenders import Contender
from benchmarks.gpu.device import DryDevice
from benchmarks.gpu.journal import Journal

TINY = Case(9, 3, 4, 6)


def test_the_grid_is_whole_and_covered_early():
    cases = cells.grid_cases()
    assert len(set(cases)) == 84
    assert cases[-1] == Case(1024, 256, 2048, 2048)
    assert {case.T for case in cases[:28]} == {512}
    # Corners first.
    assert {(1, 64), (256, 64)} <= {(case.N, case.H) for case in cases[:3]}
    for key, sizes in (("N", cells.GRID_N), ("H", cells.GRID_H)):
        assert {getattr(case, key) for case in cases[:14]} == set(sizes)


def test_edges_have_what_they_should():
    cases = cells.edge_cases()
    assert {96, 129, 160, 200, 650} <= {case.H for case in cases}
    assert {7, 33, 129} <= {case.N for case in cases}
    variants = {"packed", "lengths", "proj", "layers3", "layers4", "bidirectional", "resets"}
    variants.add("autocast")
    assert {case.variant for case in cases} == variants | {"plain"}
    assert Case(128, 128, 256, 256, variant="resets") in cases


@pytest.mark.parametrize("part", [*plan.BENCHES, "edges"])
def test_shares_make_the_whole_and_keys_differ(part):
    whole = cells_of(part)
    halves = [cells_of(part, (k, 2)) for k in (1, 2)]
    assert sorted(halves[0] + halves[1]) == sorted(whole)
    assert abs(len(halves[0]) - len(halves[1])) <= 2
    assert len({cell.key(part) for cell in whole}) == len(whole)
    assert cells_of(part, most=3) == whole[:3]


def test_parts_are_read_and_stand_in_order_of_worth():
    assert plan.parse_parts([]) == list(plan.PARTS)
    assert plan.parse_parts(["edges", "bench", "fp32", "bf16", "build"]) == [
        "build", "bench bf16", "bench fp32", "edges",
    ]  # fmt: skip
    assert plan.parse_parts(["bench", "tests"]) == [
        "bench bf16", "bench fp32", "bench tf32", "tests", "bench fp16",
    ]  # fmt: skip


# Per step in us, forward and backward: hand calculations for an H200 with the same constants.
FLOORS = {
    ("bf16", 1, 64): (0.23, 0.28), ("bf16", 16, 256): (0.45, 0.63), ("bf16", 64, 512): (0.93, 1.4),
    ("bf16", 256, 1024): (5.1, 7.1), ("bf16", 1, 2048): (1.4, 1.6), ("bf16", 16, 2048): (2.7, 5.5),
    ("fp32", 1, 128): (0.38, 0.48), ("fp32", 16, 512): (1.4, 2.0), ("fp32", 64, 1024): (11.6, 15),
    ("fp32", 64, 2048): (47, 51), ("tf32", 16, 768): (1.5, 2.2), ("tf32", 64, 256): (0.71, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("shape", FLOORS, ids=str)
def test_floor_is_what_was_calculated_by_hand(shape):
    precision, N, H = shape
    for backward, expected in zip((False, True), FLOORS[shape], strict=True):
        found, _ = floor.step_us(precision, N, H, H, backward)
        assert expected / 1.35 < found < expected * 1.35


def test_floor_grows_with_the_work():
    rate = 1e14
    base = floor.floor_seconds(Case(10, 4, 64, 64), "bf16", "infer", rate)["floor_s"]
    for case in (Case(20, 4, 64, 64), Case(10, 4, 64, 64, L=2), Case(10, 4, 999, 64)):
        assert floor.floor_seconds(case, "bf16", "infer", rate)["floor_s"] > base
    trained = floor.floor_seconds(Case(10, 4, 64, 64), "bf16", "train", rate)
    assert trained["floor_s"] > 2 * base
    assert floor.outside_flops(Case(10, 4, 3, 5), "infer") == 10 * 4 * 8 * 3 * 5
    assert floor.outside_flops(Case(10, 4, 3, 5), "train") == 10 * 4 * 8 * 5 * (3 * 3 + 5)


def verifier(case=TINY, precision="fp32"):
    cell = GpuCell(case, precision, "train")
    problem = Problem.make(case, contenders.tensor_dtype(cell))
    return verify.Verifier(DryDevice(), cell, problem, contenders.contenders_of(cell)[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_torch_passes_beside_itself(precision):
    assert 0 <= verifier(precision=precision).verify(Contender("same", TorchLSTM()), "train") <= 1


@pytest.mark.parametrize("case", cells.edge_cases(), ids=lambda case: case.label)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_every_edge_can_be_checked(case):
    from benchmarks.common.stand_ins import shrink

    if case.variant == "autocast" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("on this CPU oneDNN has no bfloat16, and nn.LSTM under autocast does not run")
    case = shrink(case)
    checker = verifier(case, "bf16" if case.variant == "autocast" else "fp32")
    first = checker.first
    assert checker.verify(first, "infer") <= 1
    assert checker.verify(first, "train") <= 1


def test_a_long_case_is_checked_on_its_first_steps(monkeypatch):
    monkeypatch.setattr(verify, "ORACLE_FLOPS", TINY.flops("train") / 2)
    checker = verifier()
    assert (checker.whole, checker.case.T) == (False, 4)
    y, h_n, c_n = TorchLSTM().build(Problem.make(TINY, torch.float32)).forward(Problem.make(TINY, torch.float32).x)
    checker.verify_whole("right", (y, h_n, c_n))
    late = y.detach().clone()
    late[2] += 1e-3
    with pytest.raises(check.WrongResult, match="whole length: output"):
        checker.verify_whole("wrong", (late, h_n, c_n))
    late[2], late[8, 0, 0] = y[2].detach(), math.nan
    with pytest.raises(check.WrongResult, match="not finite"):
        checker.verify_whole("wrong", (late, h_n, c_n))


def test_a_replay_may_differ_by_rounding_alone():
    checker = verifier()
    checker.verify(Contender("same", TorchLSTM()), "train")
    once = (torch.randn(4, 5),)
    assert checker.verify_replay("x", once, once) is None
    rounded = (once[0] * (1 + 1e-7),)
    assert "bit for bit" in checker.verify_replay("x", once, rounded)
    for wrong in (once[0] * 1.01, once[0] * math.nan):
        with pytest.raises(check.WrongResult, match="replay"):
            checker.verify_replay("x", once, (wrong,))


def test_the_reference_counts_where_the_baseline_rounds_less(monkeypatch):
    """As for TF32, which nn.LSTM may use and need not."""
    checker = verifier(precision="tf32")
    checker.shares, checker.roundoff = {"results": 0.0, "gradients": 0.0}, 1e-12
    assert checker.verify(Contender("same", TorchLSTM()), "train") <= 1
    checker.with_reference, checker.shares = False, {"results": 0.0, "gradients": 0.0}
    monkeypatch.setattr(checker, "reference", TorchLSTM())
    wrong = {name: value.float() * 1.1 for name, value in checker.oracle.items()}
    with pytest.raises(check.WrongResult):
        checker._judge("wrong", wrong, set(wrong))


def test_products_are_rounded_as_on_tensor_cores():
    ones = torch.tensor([1 + 2.0**-10, 1 + 2.0**-11, 1 + 2.0**-12])
    assert verify.rounded(ones, "tf32").tolist() == [1 + 2.0**-10, 1 + 2.0**-10, 1.0]
    assert verify.rounded(ones, "bf16").tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(verify.rounded(ones, "fp32"), ones)


@pytest.mark.parametrize("mode", ["ieee", "tf32"])
def test_precision_is_set_and_restored(mode):
    places = torch.backends.cudnn.rnn, torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [place.fp32_precision for place in places]
    with fp32_precision(mode):
        assert [place.fp32_precision for place in places] == [mode] * 3
    assert [place.fp32_precision for place in places] == before


@pytest.mark.parametrize(("capability", "expected"), [("8.0", "80"), ("8.6", "86"), ("9.0", "90a"), ("10.0", "100a")])
def test_architecture(capability, expected):
    assert device.architecture(capability) == expected


def test_kernels_of_a_call_by_the_profiler():
    a = torch.randn(16, 16)
    found = profile.kernels_of(DryDevice(), lambda _: (a @ a).tanh())
    assert {"aten::mm", "aten::tanh"} <= {kernel["name"] for kernel in found}
    assert all(kernel["us"] > 0 and kernel["count"] >= 1 for kernel in found)


def test_looks_are_taken_once_and_say_what_they_lack(tmp_path):
    journal = Journal(tmp_path / "j", "s")
    assert profile.run(DryDevice(), journal, time.time() + 60, 3) == 0
    looks = journal.latest("profile").values()
    by_name = {look["contender"]: look for look in looks}
    assert by_name["nn.LSTM"]["kernels"]
    assert "refused" in by_name["cuda"]["note"]
    before = journal.records()
    assert profile.run(DryDevice(), journal, time.time() + 60, 3) == 0
    assert journal.records() == before
    assert profile.run(DryDevice(), journal, time.time() - 1, 5) == 2


MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at fastlstm::cuda::lstm_forward_kernel_step(float *)+0x70 in recurrence.cu:8
=========     by thread (3,0,0) in block (0,0,0)
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: lstm_forward in _C.abi3.so
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at ampere_sgemm_32x32(float *)+0x10
=========         Host Frame: fastlstm_layer in _C.abi3.so
=========
========= ERROR SUMMARY: 2 errors
"""


def test_reports_of_the_sanitizer_are_ours_by_the_kernel_and_not_by_the_host():
    (found,) = sanitizer.ours(MEMCHECK)
    assert found.startswith("Invalid __global__ read")
    assert sanitizer.ours("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n") == []
    assert sanitizer.counts_nothing("========= ERROR SUMMARY: 0 errors")
    assert sanitizer.counts_nothing("RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
    assert not sanitizer.counts_nothing("========= ERROR SUMMARY: 10 errors")


@pytest.mark.parametrize(
    ("log", "driver", "status"),
    [
        ("========= ERROR SUMMARY: 0 errors", sanitizer.DONE, "ok"),
        ("========= ERROR SUMMARY: 3 errors", sanitizer.DONE, "failed"),
        (MEMCHECK, sanitizer.DONE, "failed"),
        ("========= Error: Device not supported", "", "unavailable"),
        ("========= ERROR SUMMARY: 0 errors", "stopped half way", "unavailable"),
    ],
)
def test_what_a_tool_says_is_judged(log, driver, status, tmp_path):
    """The tool is played by a shell script that prints its log."""
    script, path = tmp_path / "tool", tmp_path / "tool.log"
    script.write_text(f"#!/bin/sh\ncat > {path} <<'END'\n{log}\nEND\necho '{driver}'\n")
    script.chmod(0o755)
    assert sanitizer.kernel_filter(str(script)) == "--kernel-name"
    row = sanitizer.one("memcheck", "cuda", path, str(script), 30, "--kernel-name")
    assert row["status"] == status


def test_what_ptxas_says_is_added_up():
    text = "ptxas info    : Used 40 registers, 2 bytes\n    8 bytes spill stores, 8 bytes spill\n"
    found = build.ptxas(text + "ptxas info    : Used 255 registers, used 1 barriers\n")
    assert found == {"kernels": 2, "most_registers": 255, "spilled_bytes": 8}


def test_results_of_the_newest_tests(tmp_path):
    journal = Journal(tmp_path / "j", "s")
    given = {"outcome": "passed", "reason": "", "seconds": 1.0}
    journal.append("test", suite.prefix("old", "1/1") + "a", **given)
    for shard, nodeid, outcome in (("1/2", "a", "passed"), ("2/2", "b", "failed")):
        journal.append("test", suite.prefix("new", shard) + nodeid, **given | {"outcome": outcome})
    key = suite.prefix("new", "2/2") + "c[x y]"
    journal.append("broken", key, contender="test", reason="killed")
    found = suite.results(journal)
    assert {k: v["outcome"] for k, v in found.items()} == {
        "a": "passed", "b": "failed", "c[x y]": "broken",
    }  # fmt: skip
    assert suite.summary(found) == "1 broken, 1 failed, 1 passed"


def test_first_steps_keep_the_numbers():
    case = replace(TINY, variant="resets")
    problem = Problem.make(case, torch.float32)
    part = verify.first_steps(problem, replace(case, T=4))
    assert torch.equal(part.x, problem.x[:4])
    assert torch.equal(part.reset_mask, problem.reset_mask[:4])
