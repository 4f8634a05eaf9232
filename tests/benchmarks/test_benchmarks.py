"""The benchmark harness: shapes, statistics, floor, peers and their check. No time is asserted."""

import gc
import itertools
import math
import random
import subprocess
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.common import check, shapes, timing
from benchmarks.common.machine import cpu_info
from benchmarks.common.peers import PEERS, Problem, TorchLSTM
from benchmarks.common.shapes import Case, Cell
from benchmarks.cpu import floor, rates, report, sweep

TINY = Case(5, 3, 4, 6)
CONFIGS = (["float32", "bfloat16"], ["infer", "train"], [1, 2])


def test_core_grid_is_the_whole_product():
    cases = shapes.core_cases()
    assert len(set(cases)) == len(cases) == 60
    assert all(case.I == case.H and case.L == case.D == 1 and not case.P for case in cases)


def test_default_list_fits_and_covers_every_size():
    cells = shapes.trim(shapes.core_cases(), *CONFIGS, seconds=80)
    assert sum(map(shapes.expected_cell_seconds, cells)) <= 80
    assert len(set(cells)) == len(cells)
    assert {(c.dtype, c.mode, c.threads) for c in cells} == set(itertools.product(*CONFIGS))
    assert {c.case.T for c in cells} == set(shapes.CORE_T)
    assert {c.case.N for c in cells} == set(shapes.CORE_N)
    assert {c.case.H for c in cells} == set(shapes.CORE_H)
    assert cells == shapes.trim(shapes.core_cases()[::-1], *CONFIGS, seconds=80)


def test_trim_has_nothing_for_no_time():
    assert shapes.trim(shapes.core_cases(), *CONFIGS, seconds=1e-6) == []


@pytest.mark.parametrize(
    ("case", "forward"),
    [
        (Case(10, 4, 8, 16), 10 * 4 * 8 * 16 * (8 + 16)),
        (Case(10, 4, 8, 16, D=2), 2 * 10 * 4 * 8 * 16 * (8 + 16)),
        (Case(10, 4, 8, 16, L=2), 10 * 4 * 8 * 16 * (8 + 16 + 16 + 16)),
        (Case(10, 4, 8, 16, L=2, D=2), 2 * 10 * 4 * 8 * 16 * (8 + 16 + 32 + 16)),
        (Case(10, 4, 8, 16, P=5), 10 * 4 * (8 * 16 * (8 + 5) + 2 * 5 * 16)),
    ],
)
def test_flops(case, forward):
    assert case.flops("infer") == forward
    assert case.flops("train") == 3 * forward


def test_packed_case_counts_the_rows_that_its_lengths_keep():
    problem = Problem.make(Case(64, 33, 4, 4, variant="packed"), torch.float32)
    assert int(problem.lengths.sum()) == pytest.approx(problem.case.rows(), rel=0.02)
    assert int(problem.lengths.max()) == 64


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "1,2,0", "1,2,3,4,5", ""])
def test_wrong_shape_is_named(text):
    with pytest.raises(ValueError, match="expected T,N,H"):
        shapes.parse_shapes([text])


def test_shapes_are_read():
    assert shapes.parse_shapes(["7,2,5", "7,2,3,5"]) == [Case(7, 2, 5, 5), Case(7, 2, 3, 5)]


@pytest.mark.parametrize("variant", shapes.VARIANTS)
def test_variants_have_cases(variant):
    assert {case.variant for case in shapes.variant_cases(variant)} == {variant}


def test_unknown_variant():
    with pytest.raises(ValueError, match="nope"):
        shapes.variant_cases("nope")


def test_geometric_mean():
    assert timing.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert timing.geometric_mean([1.0, 10.0, 100.0]) == pytest.approx(10.0)
    for wrong in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="positive"):
            timing.geometric_mean(wrong)


class Clock:
    """Time that passes only when a task says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_interleave_alternates_and_keeps_to_its_budget():
    clock, order = Clock(), []

    def task(name, seconds):
        def call():
            order.append(name)
            clock.now += seconds

        return timing.Task(call)

    times = timing.interleave({"a": task("a", 2.0), "b": task("b", 1.0)}, 20.0, clock=clock)
    assert times == {"a": [2.0] * 7, "b": [1.0] * 7}
    assert "".join(order) == "ab" + "abbaabbaabbaab"
    least = timing.interleave({"a": task("a", 2.0)}, 0.0, clock=clock)
    assert least == {"a": [2.0] * timing.MIN_REPS}


def test_interleave_prepares_off_the_clock_and_restores_the_collector():
    clock, seen = Clock(), []

    def prepare():
        clock.now += 100.0

    def call():
        seen.append(gc.isenabled())
        clock.now += 1.0

    times = timing.interleave({"a": timing.Task(call, prepare)}, 0.0, clock=clock)
    assert set(times["a"]) == {1.0}
    assert not any(seen)
    assert gc.isenabled()


def test_paired_ratio():
    got = timing.paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert got == {"ratio": 2.0, "low": 2.0, "high": 2.0}
    mixed = timing.paired_ratio([1.0, 2.0, 3.0, 4.0, 9.0], [1.0] * 5)
    assert mixed["low"] <= mixed["ratio"] == 3.0 <= mixed["high"]
    with pytest.raises(ValueError, match="1 and 2"):
        timing.paired_ratio([1.0], [1.0, 2.0])


def test_the_ratio_is_what_its_interval_is_of():
    """Rounds that are slow for both move the medians of the times, and not the ratio: here these
    would give 4 / 2.
    """
    base = [3.0, 3.0, 4.0, 30.0, 30.0]
    other = [1.0, 1.0, 2.0, 10.0, 10.0]
    got = timing.paired_ratio(base, other)
    assert got["ratio"] == 3.0
    assert got["low"] >= 2.0 and got["high"] == 3.0
    draw = random.Random(0)
    for rounds in range(5, 30):
        noise = [draw.lognormvariate(0, 1) for _ in range(rounds)]
        base = [each * draw.lognormvariate(0.7, 0.2) for each in noise]
        got = timing.paired_ratio(base, noise)
        assert got["low"] <= got["ratio"] <= got["high"]


def test_spread():
    assert timing.spread([3.0, 1.0, 2.0]) == {
        "samples": 3, "min_s": 1.0, "q25_s": 1.5, "median_s": 2.0, "q75_s": 2.5, "max_s": 3.0,
    }  # fmt: skip


def test_torch_threads_are_restored():
    before = torch.get_num_threads()
    with timing.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_floor_is_the_larger_of_flops_and_bytes():
    cell = Cell(Case(10, 1, 32, 32), "float32", "infer", 1)
    flops, read = 10 * 8 * 32 * 64, 10 * 4 * 32 * 32 * 4
    assert floor.streamed_bytes(cell.case, "float32", "infer") == read
    assert floor.streamed_bytes(cell.case, "bfloat16", "train") == read
    assert floor.floor_seconds(cell, 1.0, 1e9) == (flops, "flops")
    assert floor.floor_seconds(cell, 1e9, 1.0) == (read, "bytes")


def test_floor_uses_the_rates_of_its_thread_count():
    machine = floor.Machine(
        peaks={
            ("float32", "avx2", 1): 3.0,
            ("float32", "avx512", 1): 4.0,
            ("float32", "avx2", 2): 8.0,
            ("bfloat16", "avx512bf16", 1): 2.0,
            ("bfloat16", "amx", 2): 9.0,
        },
        bandwidths={(4 * 32 * 32 * size, threads): 1e9 for size in (2, 4) for threads in (1, 2)},
    )
    case = Case(10, 1, 32, 32)
    flops = case.flops("infer")
    assert machine.floor(Cell(case, "float32", "infer", 2)) == (flops / 8.0, "flops")
    assert machine.floor(Cell(case, "bfloat16", "infer", 1)) == (flops / 4.0, "flops")
    assert machine.floor(Cell(case, "bfloat16", "infer", 2)) == (flops / 9.0, "flops")
    assert machine.floor(Cell(case, "float16", "infer", 1)) == (flops / 4.0, "flops")


def test_threads_that_bring_nothing_are_called_disturbed():
    def machine(*rates):
        return floor.Machine({("float32", "avx2", n): rate for n, rate in enumerate(rates, 1)})

    assert machine(4.0, 7.9).disturbed() == []
    (line,) = machine(4e9, 3e9).disturbed()
    assert "3 GF/s with 2 threads" in line


@pytest.fixture
def compiled():
    try:
        return rates.program()
    except rates.Unavailable as error:
        pytest.skip(str(error))


def test_rates_are_measured_by_the_probe(compiled, monkeypatch):
    monkeypatch.delenv("FASTLSTM_CPU_ISA", raising=False)
    machine = floor.Machine()
    machine.measure_peaks(["bfloat16"], [1, 2])
    assert not machine.unprobed
    assert {key[1:] for key in machine.peaks} >= {("generic", 1), ("generic", 2)}
    assert min(machine.peaks.values()) > 1e8 and machine.bandwidth(1 << 16, 2) > 1e7
    flags = cpu_info()[1]
    has = {isa for _, isa, _ in machine.peaks}
    for isa, flag in (("avx2", "avx2"), ("avx512", "avx512f"), ("avx512bf16", "avx512_bf16")):
        assert (isa in has) == (flag in flags)
    assert machine.caches.keys() <= {(f"L{n}", threads) for n in (1, 2, 3) for threads in (1, 2)}
    monkeypatch.setenv("FASTLSTM_CPU_ISA", "generic")
    assert {line["with"] for line in rates.peaks([1], 0.0)} == {"generic"}


def test_the_probe_is_compiled_once(compiled, monkeypatch):
    rates.program.cache_clear()
    monkeypatch.setattr(rates, "COMPILE_SECONDS", "nothing is compiled")
    assert rates.program() == compiled
    wrong = subprocess.run([compiled, "peaks", "0.1", "0"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage" in wrong.stderr


def test_without_a_compiler_torch_stands_in_and_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(floor, "measure_peak", lambda dtype, threads: 5e9)
    rates.program.cache_clear()
    machine = floor.Machine()
    machine.measure_peaks(["bfloat16"], [1])
    rates.program.cache_clear()
    assert machine.peaks == {(dtype, "torch.mm", 1): 5e9 for dtype in ("float32", "bfloat16")}
    with timing.torch_threads(1):
        assert machine.bandwidth(4096, 1) > 0
    (line,) = report.rate_lines(machine.as_dict())
    assert "no C++ compiler: no-such-compiler not on PATH" in line and "5 (1 thread)" in line


def test_torch_has_rates_too():
    with timing.torch_threads(1):
        assert floor.measure_peak("float32", 1, seconds=0.0) > 0
        assert floor.measure_bandwidth(4096, 1, seconds=0.0) > 0


def all_variant_cases():
    options = {"bidirectional": {"D": 2}, "layers3": {"L": 3}, "proj": {"P": 2}}
    for variant in ("plain", "bidirectional", "layers3", "proj", "packed", "lengths"):
        yield Case(5, 3, 4, 6, variant=variant, **options.get(variant, {}))


# nn.LSTM says that oneDNN has no projection; it goes on without.
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("case", list(all_variant_cases()), ids=lambda case: case.variant)
@pytest.mark.parametrize("mode", shapes.MODES)
def test_control_passes_the_check(case, mode):
    with timing.torch_threads(1):
        bench = sweep.Bench(case, "float32", "cpu", {mode}, sweep.CONTROL, 1)
        assert 0 <= bench.check(mode) <= 1


def test_loop_over_cells_is_an_lstm_where_nothing_resets():
    case = Case(5, 3, 4, 6, variant="resets")
    problem = Problem.make(case, torch.float64)
    problem.reset_mask[:] = False
    plain = Problem.make(TINY, torch.float64)
    got = check.results(PEERS["nn.LSTMCell loop"].build(problem), problem, "train")
    expected = check.results(PEERS["nn.LSTM"].build(plain), plain, "train")
    assert got.keys() == expected.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name])


def test_loop_over_cells_resets():
    case = Case(5, 3, 4, 6, variant="resets")
    problem = Problem.make(case, torch.float64)
    problem.reset_mask[:] = False
    problem.reset_mask[2] = True
    tail = Problem.make(case, torch.float64)
    tail.x, tail.reset_mask = problem.x[2:], problem.reset_mask[2:]
    peer = PEERS["nn.LSTMCell loop"]
    whole = check.results(peer.build(problem), problem, "infer")
    part = check.results(peer.build(tail), tail, "infer")
    torch.testing.assert_close(whole["output"][2:], part["output"])


class Wrong(TorchLSTM):
    """nn.LSTM with one number changed."""

    name = "wrong"

    def __init__(self, change):
        self.change = change

    def build(self, problem):
        runner = super().build(problem)
        inner = runner.forward

        def forward(x):
            y, *state = inner(x)
            return self.change(y), *state

        runner.forward = forward
        return runner


def off_by_one_percent(y):
    return y * 1.01


def not_a_number(y):
    return y + torch.where(torch.arange(y.numel()).view_as(y) == 0, math.nan, 0.0)


@pytest.mark.parametrize("change", [off_by_one_percent, not_a_number])
def test_wrong_result_gives_a_failed_row_and_the_run_goes_on(monkeypatch, change):
    monkeypatch.setitem(PEERS, "wrong", Wrong(change))
    bad = Cell(TINY, "float32", "infer", 1)
    both = [PEERS["nn.LSTM"], PEERS["wrong"]]
    monkeypatch.setattr(sweep, "chosen_peers", lambda *_: (*both, both))
    rows = list(sweep.run([bad, replace(bad, mode="train")], candidate="wrong", per_cell=0.0))
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert "WrongResult: wrong: output is off by" in rows[0]["error"]


def test_check_finds_a_wrong_gradient():
    problem = Problem.make(TINY, torch.float32)
    exact = problem.as_float64()
    reference = check.results(PEERS["nn.LSTM"].build(exact), exact, "train")
    got = check.results(PEERS["nn.LSTM"].build(problem), problem, "train")
    own = check.errors(got, reference)
    assert check.judge("same", got, own, reference, torch.float32) <= 0.5
    spoilt = {**got, "d_weight_hh_l0": got["d_weight_hh_l0"] + 1e-3}
    with pytest.raises(check.WrongResult, match="d_weight_hh_l0"):
        check.judge("spoilt", spoilt, own, reference, torch.float32)
    del spoilt["d_weight_hh_l0"]
    with pytest.raises(check.WrongResult, match="gives no d_weight_hh_l0"):
        check.judge("spoilt", spoilt, own, reference, torch.float32)


def test_low_precision_is_checked_against_its_own_numbers():
    with timing.torch_threads(1):
        bench = sweep.Bench(TINY, "bfloat16", "cpu", {"train"}, sweep.CONTROL, 1)
        assert bench.reference["output"].dtype == torch.float64
        assert bench.check("train") <= 1


def test_missing_peer_is_a_failed_row_with_its_reason():
    cell = Cell(Case(5, 3, 4, 6, variant="resets"), "float32", "infer", 1)
    (row,) = sweep.run([cell], candidate=sweep.CONTROL, per_cell=0.0)
    assert row["status"] == "failed"
    assert "nn.LSTM again has no resets" in row["error"]


def test_long_cases_are_checked_on_their_first_steps():
    long = Case(1 << 20, 256, 1024, 1024)
    assert sweep.checkable(long, "train").T < long.T
    assert sweep.checkable(TINY, "train") == TINY


def test_every_peer_says_why_not():
    for peer in PEERS.values():
        assert peer.name in (peer.reject(TINY, torch.float32, "meta") or "")


def test_problem_leaves_the_random_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Problem.make(TINY, torch.float32)
    assert torch.equal(torch.rand(2), expected)


def test_shared_weights():
    problem = Problem.make(TINY, torch.float32)
    runner = PEERS["nn.LSTM"].build(problem)
    assert isinstance(runner.module, nn.LSTM)
    for name, value in runner.parameters.items():
        assert torch.equal(value, problem.state_dict[name])
