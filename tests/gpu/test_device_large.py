"""Sizes that a 32-bit offset or a 16-bit grid cannot hold, and a memory that is full."""

import contextlib
import fcntl
import gc
import tempfile
from pathlib import Path

import pytest
import torch
from on_device import check_kind, hold, prefix_of, scaled
from op_cases import (
    Case,
    Measured,
    backward,
    draw,
    forward,
    judge,
    rounded_products,
    run_both,
    tape_of,
    to,
)

from fastlstm import FastLSTM
from fastlstm.testing import judge as judge_module
from fastlstm.testing import make_input, relative_errors, run

pytestmark = pytest.mark.gpu
GIB = 2**30


@pytest.fixture
def alone(device):
    """One test with much memory at a time, of all processes that share the device; what it took is
    given back."""
    with (Path(tempfile.gettempdir()) / "fastlstm-large.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def needs_memory(device, size):
    if device.type == "cpu":
        return
    free, _ = torch.cuda.mem_get_info()
    if free < size:
        pytest.skip(f"{free / GIB:.0f} GiB of GPU memory are free, {size / GIB:.0f} are needed")


def test_more_steps_than_16_bits_count(backend, device):
    """Against torch's own LSTM on the CPU, which the reference would take minutes for."""
    T, N, I, H = scaled(70_000, 40), 1, 2, 3
    lstm = torch.nn.LSTM(I, H)
    x = make_input(T, N, I, torch.float32)
    fast = FastLSTM(I, H, backend=backend)
    fast.load_state_dict(lstm.state_dict())
    got = {k: v.cpu() for k, v in run(fast.to(device), x.to(device)).items()}
    low, errors = run(lstm, x), {}
    oracle = run(lstm.double(), x.double(), dtype=torch.float32)
    for name, error in relative_errors(low, oracle).items():
        # The sums over T roundings, one after the other, of a gradient are a random walk.
        errors[name] = error + T**0.5 * torch.finfo(torch.float32).eps / 2
    judge_module(got, oracle, errors, torch.float32)


def expected(case, problem):
    """What the reference gives in the case's dtype and in float64, its tape, and its errors."""
    measured, found = Measured(), None
    for drawn in (problem, draw(case), draw(case)):
        with rounded_products(case.dtype):
            low = forward(case, "reference", drawn[0])
            saved = tape_of(low)
            low |= backward(case, "reference", *drawn, saved)
        oracle = run_both(case, "reference", drawn, saved, torch.float64)
        measured.add(low, oracle)
        found = found or (low, oracle, saved)
    return *found, measured


@pytest.mark.parametrize("tape", [True, False], ids=["with-tape", "without-tape"])
def test_offsets_beyond_32_bits(tape, backend, device, alone):
    """More gates than 2^31 elements; without a tape more outputs. The first rows and the last are
    those of a small problem, which the reference computes; the others are random."""
    H, T, few = 512, 2, 4
    N = scaled(600_000 if tape else 2_200_000, 11)
    H = scaled(H, 6)
    needs_memory(device, 45 * GIB)
    small = Case("recurrence", T=T, N=2 * few, H=H, dtype=torch.bfloat16)
    problem = draw(small)
    low, oracle, saved, measured = expected(small, problem)

    def widened(tensor):
        """(T | D, few + others + few, ...), the outer rows those of the small problem."""
        rows = [*tensor.shape]
        rows[1] = N
        wide = torch.empty(rows, dtype=tensor.dtype, device=device).normal_()
        wide[:, :few], wide[:, -few:] = tensor[:, :few].to(device), tensor[:, few:].to(device)
        return wide

    def narrowed(wide):
        return torch.cat([wide[:, :few], wide[:, -few:]], 1).cpu()

    gates_x, h0, c0, weight_hh, *rest = problem[0]
    arguments = [*map(widened, (gates_x, h0, c0)), weight_hh.to(device), *rest]
    family = prefix_of(backend)
    results = forward(small, family, arguments, save_tape=tape, save_cells=tape)
    names = ("output", "h_n", "c_n", "cells", "gates") if tape else ("output", "h_n", "c_n")
    found = {name: narrowed(results[name]) for name in names}
    if tape:
        gradients = [widened(g) for g in problem[1]]
        given = tape_of(results)
        # The reference's backward had the reference's tape.
        for mine, small_one in zip(given, saved, strict=True):
            mine[:, :few] = small_one[:, :few].to(device)
            mine[:, -few:] = small_one[:, few:].to(device)
        after = backward(small, family, arguments, gradients, given)
        found |= {name: narrowed(after[name]) for name in ("dgates_x", "dh0", "dc0")}
    judge(small, found, low, {k: oracle[k] for k in found}, measured)


@contextlib.contextmanager
def no_more_memory_than(size):
    """Let torch take no more than `size` bytes beyond what it has."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_full_memory_is_torchs_error_and_the_next_call_works(backend, device, real_gpu):
    case = Case("recurrence", T=1000, N=256, H=64, dtype=torch.float32)
    small = Case("recurrence", T=3, N=5, H=17, dtype=torch.float32)
    check_kind(small, backend, "float32", device)
    arguments = to(None, draw(case)[0], device)
    # Room for the smaller results, and not for the gates.
    with no_more_memory_than(200 * 2**20), pytest.raises(torch.OutOfMemoryError):
        forward(case, prefix_of(backend), arguments)
    check_kind(small, backend, "float32", device)
    forward(case, prefix_of(backend), arguments)


def test_full_memory_in_a_module(backend, device, real_gpu):
    module = FastLSTM(16, 64, backend="reference")
    fast = FastLSTM(16, 64, backend=backend).to(device)
    x = torch.randn(2000, 1024, 16, device=device)
    fast(x[:4])
    with no_more_memory_than(256 * 2**20), pytest.raises(torch.OutOfMemoryError):
        fast(x)
    hold(module, backend, device, x[:4, :5].cpu())


@pytest.mark.parametrize("size", [5, 64])
def test_second_device(size, backend, device, real_gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    module = FastLSTM(3, size, backend="reference", bidirectional=True)
    hold(module, backend, torch.device("cuda:1"), make_input(4, 3, 3, torch.float32))


def test_lengths_on_the_device(backend, device):
    """Unsorted, zeros among them, of a small integer dtype."""
    module = FastLSTM(3, 7, backend="reference", bidirectional=True)
    lengths = torch.tensor([2, 0, 4, 1], dtype=torch.uint8)
    x = make_input(4, 4, 3, torch.float32)
    hold(module, backend, device, x, lengths=lengths)
    assert to(None, [lengths], device)[0].device.type == device.type
