"""A mistake in the CUDA kernels would be noticed: csrc/cuda with one in it, a mutant, gives other
results or a report, under seeds under which the sources as they are pass.

Compiled for bfloat16 alone, on few and small blocks: simt/kernels/only_bfloat16.cu.
"""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from op_cases import (
    DRAWS,
    Case,
    Measured,
    backward,
    draw,
    forward,
    judge,
    rounded_products,
    run_both,
    tape_of,
)
from simt import build, run
from simt.small_kernels import needs_compiler

pytestmark = [needs_compiler, pytest.mark.slow]

CASE = Case("recurrence", T=5, N=5, H=37, D=2, dtype=torch.bfloat16, masks="random", wide_states=True)
LENGTHS = (5, 0, 3, 4, 5)
RESETS = ((0, 0, 1, 0, 1), (0, 0, 1, 0, 0), (1, 0, 0, 0, 0), (0, 0, 0, 1, 1), (0, 0, 0, 0, 1))
SEEDS = range(6)
DTYPE_CODE = 2  # of DType::kBFloat16
CSRC = build.ROOT / "csrc"
ONLY_BFLOAT16 = build.HERE / "kernels" / "only_bfloat16.cu"
ARGUMENTS = ("gates_x", "h0", "c0", "weight_hh", "weight_hr", "lengths", "reset_mask")
RESULTS = {
    "forward": ("output", "h_n", "c_n", "cells", "gates"),
    "backward": ("dgates_x", "dh0", "dc0", "dhidden"),
}


@dataclass(frozen=True)
class Mutant:
    """`text`, which stands once in the file, replaced; the entry that shows it; and what its report
    says, if it is not by the results that it is found."""

    family: str
    entry: str
    file: str
    text: str
    replacement: str
    says: str = ""


MUTANTS = {
    "no barrier behind a stage's copies": Mutant(
        "steps", "forward", "product/product.h",
        "      __syncthreads();\n      copy(f, s", "      copy(f, s",
    ),
    "a wait for one group of copies less": Mutant(
        "steps", "forward", "product/product.h",
        "cp_async_wait<Tile::kStages - 2>", "cp_async_wait<Tile::kStages - 1>",
    ),
    "no barrier before the sums take the tiles' place": Mutant(
        "steps", "forward", "product/product.h",
        "    __syncthreads();  // all copies are done; the sums overwrite the tiles\n", "",
    ),
    "a row more than there are": Mutant(
        "steps", "forward", "product/product.h", "row0 + row >= f.rows", "row0 + row > f.rows",
    ),
    "h written over that is being read": Mutant(
        "steps", "forward", "step/forward.h",
        "call.entering_h[(at.k + 1) % 2][state", "call.entering_h[at.k % 2][state",
    ),
    "the state of a row that waits is lost": Mutant(
        "steps", "forward", "step/forward.h",
        "  call.entering_h[(at.k + 1) % 2][place] = call.entering_h[at.k % 2][place];\n", "",
    ),
    "a gradient crosses a reset": Mutant(
        "steps", "backward", "step/backward.h", "= cut ? IO{} : rounded;", "= rounded;",
    ),
    "the copied weights' rows too close": Mutant(
        "steps", "forward", "product/matrix.h",
        "to[row * width + column]", "to[row * columns + column]",
    ),
    "a barrier behind the product is missing": Mutant(
        "clusters", "forward", "cluster/forward.h",
        "    __syncthreads();\n    typename ForwardCell<IO, Acc>::Step steps",
        "    typename ForwardCell<IO, Acc>::Step steps",
    ),
    "h sent to the buffer that is being read": Mutant(
        "clusters", "forward", "cluster/forward.h",
        "send_to_all(k, at(k, row", "send_to_all(k, at(k + 1, row",
    ),
    "c crosses a reset": Mutant(
        "clusters", "forward", "cluster/forward_cell.h",
        "c_ = at.cut ? Acc{0} : step.cell.c;", "c_ = step.cell.c;",
    ),
    "a step after a row's last": Mutant(
        "clusters", "backward", "cluster/backward_cell.h",
        "    if (t < row.length) {", "    if (t <= row.length) {",
    ),
    "the gradient of h_n at every step": Mutant(
        "clusters", "backward", "cluster/backward_cell.h", "    dh_ = 0;\n", "",
    ),
    "c leaves rounded": Mutant(
        "clusters", "forward", "device/arrays.h", "{a.c_n, a.wide_states}", "{a.c_n, false}",
    ),
    "one state for even and odd steps": Mutant(
        "clusters", "backward", "cluster/backward.h",
        "Shape::kStatesAt + j % 2 * Shape::kStateBytes", "Shape::kStatesAt",
    ),
    "weights of the wrong slab": Mutant(
        "clusters", "forward", "product/stationary.h",
        "(Shape::kHeldPairs + pair) * 64", "(Shape::kHeldPairs + pair) * 32",
    ),
    "the sums of odd slabs are lost": Mutant(
        "clusters", "forward", "product/stationary.h",
        "total[m][n][k] += sums[1][m][n][k]", "total[m][n][k] += 0",
    ),
    "no wait for what others send": Mutant(
        "clusters", "forward", "cluster/exchange.h",
        "ptx::mbarrier_wait(mbarriers_ + k % 2, static_cast<uint32_t>((k - 1) / 2 % 2));", "",
    ),
    "the other phase": Mutant(
        "clusters", "backward", "cluster/exchange.h", "((k - 1) / 2 % 2)", "(k / 2 % 2)",
    ),
    "too few bytes expected": Mutant(
        "clusters", "forward", "cluster/exchange.h",
        "arrive_expect_tx(mbarriers_ + which, bytes_)",
        "arrive_expect_tx(mbarriers_ + which, bytes_ - 8)",
        says="bytes more than expected",
    ),
    "too many bytes expected": Mutant(
        "clusters", "backward", "cluster/exchange.h",
        "arrive_expect_tx(mbarriers_ + which, bytes_)",
        "arrive_expect_tx(mbarriers_ + which, bytes_ + 8)",
        says="lacks 0 of 1 arrivals and 8 bytes",
    ),
    "an arrival that never comes": Mutant(
        "clusters", "forward", "cluster/exchange.h",
        "mbarrier_init(mbarriers_ + k, 1)", "mbarrier_init(mbarriers_ + k, 2)",
        says="polls mbarrier_try_wait at exchange.h:",
    ),
    "a cluster that does not meet at the start": Mutant(
        "clusters", "forward", "cluster/exchange.h",
        "void ready() const { meet(); }", "void ready() const { __syncthreads(); }",
        says="no mbarrier",
    ),
    "a step's h sent that nobody waits for": Mutant(
        "clusters", "forward", "cluster/forward.h",
        "if (k + 1 < s.T && Split::mine(e)) states.send", "if (Split::mine(e)) states.send",
        says="bytes more than expected",
    ),
    "a block that nobody waits for": Mutant(
        "grid", "forward", "grid/exchange.h", ">= k * blocks_;", ">= k * blocks_ - 1;",
    ),
    "a block counted before all of it has written": Mutant(
        "grid", "backward", "grid/exchange.h",
        "    __syncthreads();\n    if (threadIdx.x == 0) ptx::red",
        "    if (threadIdx.x == 0) ptx::red",
    ),
    "a state read before all of it is copied": Mutant(
        "grid", "forward", "grid/exchange.h",
        "    __syncthreads();\n    return state_;", "    return state_;",
    ),
    "a row of the batch that is not copied": Mutant(
        "grid", "backward", "grid/kernels.h",
        "static_cast<int>(s.N - row0)", "static_cast<int>(s.N - row0 - 1)",
    ),
    "one counter for all groups": Mutant(
        "grid", "forward", "grid/exchange.h", "group * GridMemory::kCounterStride", "0",
    ),
    "a launch that is not cooperative": Mutant(
        "grid", "forward", "launch.h",
        "attribute.val.cooperative = 1;", "attribute.val.cooperative = 0;",
        says="polls ld_acquire_gpu at exchange.h:",
    ),
    "counters that are not cleared": Mutant(
        "grid", "backward", "grid/launch.h",
        "    launch.clear(name, workspace, bytes);\n", "",
        says="polls ld_acquire_gpu at exchange.h:",
    ),
    "parts received where the sums are": Mutant(
        "projected clusters", "forward", "projected/blocks.h",
        "kPartsAt = kSumsAt + Shared::kWarpsK * kRows * kSumStride * sizeof(Acc);",
        "kPartsAt = kSumsAt;",
    ),
    "no wait for parts": Mutant(
        "projected clusters", "backward", "projected/exchange.h",
        "if (!kCluster || owns()) wait(kParts);", "",
    ),
    "a block without outputs waits for parts": Mutant(
        "projected clusters", "forward", "projected/exchange.h",
        "if (!kCluster || owns()) wait(kParts);", "wait(kParts);",
        says="polls mbarrier_try_wait at exchange.h:",
    ),
    "units of W_hr off by one": Mutant(
        "projected clusters", "forward", "projected/forward.h",
        "const int unit = unit0 + k;", "const int unit = unit0 + k + 1;",
    ),
    "no barrier between h~ and its product": Mutant(
        "projected clusters", "forward", "projected/forward.h",
        "    __syncthreads();\n    typename StationaryProduct<typename Shape::Own>::Sums",
        "    typename StationaryProduct<typename Shape::Own>::Sums",
    ),
    "rows without a pair forgotten": Mutant(
        "projected clusters", "backward", "projected/exchange.h",
        "((rows + 1) / 2 * 2)", "(rows / 2 * 2)",
        says="polls mbarrier_try_wait at exchange.h:",
    ),
    "a gradient of y at a step after the row's last": Mutant(
        "projected clusters", "backward", "cluster/backward_cell.h",
        "    if (t >= row.length) return 0;\n", "",
    ),
    "parts copied before all are there": Mutant(
        "projected grid", "backward", "projected/exchange.h",
        "wait(counters_, all_parts_);", "wait(counters_, all_parts_ - 1);",
    ),
    "half of the parts not copied": Mutant(
        "projected grid", "forward", "projected/exchange.h",
        "places_shift_(slices.shift - 1)", "places_shift_(slices.shift - 2)",
    ),
    "outputs counted where parts are": Mutant(
        "projected grid", "forward", "projected/exchange.h",
        "count(counters_ + GridMemory::kCounterStride);", "count(counters_);",
    ),
    "parts of all groups in one place": Mutant(
        "projected grid", "forward", "projected/exchange.h",
        "memory.parts + group * slices.count", "memory.parts + 0 * slices.count",
    ),
}  # fmt: skip
# Of every family forward and backward, found by results and by a report: sizes, masks, a wait, an
# exchange and a launch. The others are more of these.
KEPT = {
    "a row more than there are",
    "a gradient crosses a reset",
    "no wait for what others send",
    "too few bytes expected",
    "a step after a row's last",
    "a block that nobody waits for",
    "counters that are not cleared",
    "a block without outputs waits for parts",
    "no wait for parts",
    "parts copied before all are there",
    "half of the parts not copied",
}
assert MUTANTS.keys() >= KEPT
FAMILIES = {"steps": [], "clusters": ["-DON_CLUSTERS"], "grid": ["-DON_GRID"]}
PROJECTED = {f"projected {name}": [*FAMILIES[name], "-DPROJECTED"] for name in ("clusters", "grid")}
FAMILIES |= PROJECTED


def runner(mutant: Mutant | None, family: str):
    """The program that runs csrc/cuda as it is, or with a mutant's mistake."""
    name = "as-it-is" if mutant is None else build.digest(*vars(mutant).values())
    to = build.BUILD / "mutants" / name
    for path in [*CSRC.glob("cuda/**/*.h"), *CSRC.glob("core/*.h")]:
        copied = to / path.relative_to(CSRC)
        text = path.read_text()
        if mutant is not None and path == CSRC / "cuda" / mutant.file:
            assert text.count(mutant.text) == 1, (
                f"{mutant.file} has {text.count(mutant.text)} times, expected once: {mutant.text}"
            )
            text = text.replace(mutant.text, mutant.replacement)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(text)
    program = f"{family.replace(' ', '-')}-{name}"
    flags = ["-O0", *FAMILIES[family], f"-I{to}"]
    harness = [*build.RUNNER, build.HERE / "recurrence_runner.cpp"]
    return build.executable(program, [ONLY_BFLOAT16], flags, harness=harness)


@cache
def problem(case: Case):
    """What the runners are given, by entry, and what judge() needs to know of the results."""
    torch.manual_seed(1)
    measured = Measured()
    for arguments, gradients in [draw(case) for _ in range(DRAWS)]:
        arguments[5:] = [torch.tensor(LENGTHS), torch.tensor(RESETS).bool()]
        with rounded_products(case.dtype):
            low = forward(case, "reference", arguments)
            tape = tape_of(low)
            low |= backward(case, "reference", arguments, gradients, tape)
        oracle = run_both(case, "reference", (arguments, gradients), tape, torch.float64)
        measured.add(low, oracle)
    sizes = {"T": case.T, "N": case.N, "D": case.D, "H": case.H, "P": case.outputs}
    given = sizes | {"dtype": DTYPE_CODE, "tf32": False}
    given |= {"wide": case.wide, "wide_states": case.wide_states}
    given |= dict(zip(ARGUMENTS, arguments, strict=True))
    with_tape = given | dict(zip(("doutput", "dh_n", "dc_n", "dcells"), gradients, strict=True))
    with_tape |= {name: low[name] for name in ("cells", "gates")}
    return {"forward": given, "backward": with_tape}, (low, oracle, measured)


def case_of(family: str) -> Case:
    return replace(CASE, P=13) if family in PROJECTED else CASE


def run_entry(program, case: Case, entry: str, seed: int):
    """The outcome, and the results by name, all NaN before."""
    given, (low, _, _) = problem(case)
    results = {name: torch.full_like(low[name], torch.nan) for name in RESULTS[entry]}
    results = {name: result for name, result in results.items() if result.numel()}
    outcome = run.run(program, entry, given[entry] | results, seed)
    return outcome, {name: outcome.arrays.get(name) for name in results}


@cache
def as_it_is(family: str, entry: str) -> dict:
    """The results of the sources as they are: right, and the same under every seed."""
    program = runner(None, family)
    case = case_of(family)
    outcomes = [run_entry(program, case, entry, seed) for seed in SEEDS]
    for outcome, results in outcomes:
        assert outcome.code == "ok", outcome.report
        assert same(results, outcomes[0][1])
    judge(case, outcomes[0][1], *problem(case)[1])
    return outcomes[0][1]


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.sweep(but=lambda name: name in KEPT)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_noticed(name):
    mutant = MUTANTS[name]
    right = as_it_is(mutant.family, mutant.entry)
    program = runner(mutant, mutant.family)
    seen = []
    for seed in SEEDS:
        outcome, results = run_entry(program, case_of(mutant.family), mutant.entry, seed)
        if outcome.code != "ok":
            seen.append(outcome.report)
        elif not same(results, right):
            seen.append("other results")
        if seen and mutant.says in seen[-1]:
            return
    pytest.fail("\n".join(seen) or f"right results under all of {SEEDS}", pytrace=False)
