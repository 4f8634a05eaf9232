"""The CUDA recurrence under AddressSanitizer and UBSan: no access beside any array.

Every array and the workspace are blocks of exactly their size; results have to be, bit for bit,
those that the same kernels give in the library without sanitizers, which test_cuda_kernels.py
holds to the reference.

Compiled are the kernels for KINDS alone, those on the chip without a projection. float16's are
bfloat16's with another instruction, and what float32's and a projection's have of their own is
held to the reference, on poisoned memory, by test_cuda_shapes.py. Compiling them is most of what
this file takes: bfloat16's, which have all that there is on the chip, are a program of their own,
and the other kinds a long sweep.
"""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from op_cases import Case, backward, draw, forward, tape_of
from simt import build, run

sys.path.insert(0, str(Path(__file__).parent))
import family

pytestmark = [
    pytest.mark.skipif(family.load() is not None, reason=str(family.load())),
    pytest.mark.slow,
]

KINDS = {"float64": 0, "float32": 1, "tf32": 1, "bfloat16": 2}
KINDS_ON_CHIP = ("tf32", "bfloat16")
BFLOAT16 = [f"{name}/bfloat16.cu" for name in ("step", "cluster", "grid")]
OTHERS = [f"step/{kind}.cu" for kind in ("float64", "float32", "tf32")]
OTHERS += ["cluster/tf32.cu", "grid/tf32.cu"]
sweep = pytest.mark.sweep(but=lambda kind, **_: kind == "bfloat16")


def sized(T, N, H, **options):
    return Case("recurrence", T=T, N=N, H=H, dtype=torch.float32, **options)


WIDE = {"wide": True, "wide_states": True}
SMALL = sized(3, 3, 5, D=2, masks="random")
# Step kernels; few multiprocessors bring their larger tiles to sizes such as these.
IN_STEPS = [
    (SMALL, 132),
    (sized(1, 1, 1, wide_states=True), 132),
    (sized(2, 17, 9, P=3, **WIDE), 4),
    (sized(2, 4, 40, P=24, D=2, masks="lengths"), 1),
    (sized(2, 66, 19, masks="resets", gradients=1), 1),
]
# Blocks alone and together, with 8 rows each and with more, of which some are empty.
ON_CHIP = [
    ("cluster", sized(3, 3, 17, D=2, masks="random", wide_states=True), 132),
    ("cluster", sized(1, 1, 1), 132),
    ("cluster", sized(3, 17, 100, masks="random", wide_states=True), 16),
    ("cluster", sized(3, 9, 129, masks="random"), 132),
    ("cluster", sized(2, 9, 129, masks="lengths"), 8),
    ("grid", sized(3, 3, 17, D=2, masks="random"), 132),
    ("grid", sized(1, 1, 1), 132),
    ("grid", sized(2, 17, 37, masks="random", wide_states=True), 7),
    ("grid", sized(2, 9, 50, wide=True), 39),
]


@cache
def runner(kind):
    """The program that has a kind's kernels."""
    alone = kind == "bfloat16"
    wanted = ["cuda/recurrence.cu", *BFLOAT16, *([] if alone else OTHERS)]
    sources = [k for k in family.KERNELS if f"{k.parent.name}/{k.name}" in wanted]
    assert len(sources) == len(wanted)
    left_out = ["never_sanitized.cpp", *(["only_bfloat16_sanitized.cpp"] if alone else [])]
    sources += [build.HERE / "kernels" / name for name in left_out]
    sources += [build.HERE / "recurrence_runner.cpp"]
    # Without optimisation the kernels compile in half the time; the harness has it.
    name = "recurrence-sanitize" + "-bfloat16" * alone
    return build.executable(name, sources, ["-O0"], sanitize=True)


@pytest.fixture(autouse=True)
def precision():
    before = torch.backends.cudnn.rnn.fp32_precision
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


def poison(like):
    return {name: torch.full_like(value, torch.nan) for name, value in like.items()}


def run_sanitized(entry, case, kind, multiprocessors, seed, given, expected):
    """The entry's results, by the names in `expected`, all that `expected` has; else fails."""
    given |= {"T": case.T, "N": case.N, "D": case.D, "H": case.H, "P": case.outputs}
    given |= {"dtype": KINDS[kind], "tf32": kind == "tf32", "wide": case.wide}
    given |= {"wide_states": case.wide_states}
    given |= {"device.multiprocessors": multiprocessors}
    outcome = run.run(runner(kind), entry, given | poison(expected), seed)
    assert outcome.code == "ok", outcome.report
    for name, value in expected.items():
        assert torch.equal(outcome.arrays[name], value), name


@sweep
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("case", "multiprocessors"), IN_STEPS, ids=str)
def test_nothing_beside_an_array_is_touched_in_steps(case, multiprocessors, kind, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "step")
    check_sanitized(case, kind, multiprocessors)


@sweep
@pytest.mark.parametrize("kind", KINDS_ON_CHIP)
@pytest.mark.parametrize(("kernels", "case", "multiprocessors"), ON_CHIP, ids=str)
def test_nothing_beside_an_array_is_touched_on_chip(kernels, case, multiprocessors, kind, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    before = family.launches()
    check_sanitized(case, kind, multiprocessors)
    assert family.launches() - before == 2


def check_sanitized(case, kind, multiprocessors, seed=1):
    """Forward and backward under the sanitizers, beside the same without."""
    dtype = getattr(torch, kind, torch.float32)
    wider = dtype in (torch.bfloat16, torch.float16)  # than the tensors is the accumulation dtype
    states = wider and case.wide_states
    case = replace(case, dtype=dtype, wide=wider and case.wide, wide_states=states)
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    arguments, gradients = draw(case)
    if kind == "float64":
        arguments, gradients = (
            [t.double() if t is not None and t.is_floating_point() else t for t in part]
            for part in (arguments, gradients)
        )
    names = ["gates_x", "h0", "c0", "weight_hh", "weight_hr", "lengths", "reset_mask"]
    given = dict(zip(names, arguments, strict=True))
    with family.simulated(seed, multiprocessors=multiprocessors):
        ahead = forward(case, "simt", arguments)
        back = backward(case, "simt", arguments, gradients, tape_of(ahead))
    run_sanitized("forward", case, kind, multiprocessors, seed, dict(given), ahead)
    tape = {name: ahead[name] for name in ("cells", "gates")}
    tape |= dict(zip(("doutput", "dh_n", "dc_n", "dcells"), gradients, strict=True))
    back = {name: value for name, value in back.items() if name != "dhidden" or case.P}
    run_sanitized("backward", case, kind, multiprocessors, seed, given | tape, back)


def test_a_short_array_is_found():
    """The sanitizer is on: one number less in gates_x, and it says so."""
    case = replace(SMALL, dtype=torch.bfloat16)
    arguments, _ = draw(case)
    names = ["gates_x", "h0", "c0", "weight_hh", "weight_hr", "lengths", "reset_mask"]
    given = dict(zip(names, arguments, strict=True))
    expected = forward(case, "simt", arguments)
    given["gates_x"] = given["gates_x"].flatten()[:-1]
    given |= {"T": case.T, "N": case.N, "D": case.D, "H": case.H, "P": case.outputs}
    given |= {"dtype": KINDS["bfloat16"], "tf32": False, "wide": False, "wide_states": False}
    outcome = run.run(runner("bfloat16"), "forward", given | poison(expected))
    assert outcome.code == "sanitizer"
    assert "heap-buffer-overflow" in outcome.report
    assert "csrc/cuda/" in outcome.report
