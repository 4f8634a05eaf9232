"""FastLSTM on a GPU, by every backend: its options against the float64 reference and against
nn.LSTM on the same device.
"""

import copy

import pytest
import torch
from on_device import KINDS, hold
from torch import nn

from benchmarks.common.precision import fp32_precision
from fastlstm import FastLSTM, FastLSTMCell, functional
from fastlstm.testing import compare, judge, make_input, make_states, relative_errors, run

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_empty")]

T, N, I, H = 6, 5, 3, 20
# Options of the module, kind of the input, dtype.
CALLS = {
    "plain": ({}, "batched", "float32"),
    "plain-tf32": ({}, "batched", "tf32"),
    "plain-bf16": ({}, "batched", "bfloat16"),
    "plain-fp16": ({}, "batched", "float16"),
    "plain-double": ({}, "batched", "float64"),
    "no-bias": ({"bias": False}, "batched", "float32"),
    "unbatched": ({"bidirectional": True}, "unbatched", "float32"),
    "batch-first": ({"batch_first": True, "num_layers": 2}, "batched", "bfloat16"),
    "layers-directions": ({"num_layers": 3, "bidirectional": True}, "batched", "float32"),
    "projection": ({"proj_size": 7, "num_layers": 2}, "batched", "float32"),
    "projection-bf16": ({"proj_size": 7, "bidirectional": True}, "batched", "bfloat16"),
    "packed": ({"bidirectional": True}, "packed", "float32"),
    "packed-sorted-fp16": ({"num_layers": 2, "batch_first": True}, "packed-sorted", "float16"),
}
calls = pytest.mark.parametrize("name", CALLS)


def call_of(name):
    options, kind, dtype_name = CALLS[name]
    dtype, factors = KINDS[dtype_name]
    module = FastLSTM(I, H, backend="reference", dtype=dtype, **options)
    batch_first = options.get("batch_first", False)
    x = make_input(T, N, I, dtype, kind=kind, batch_first=batch_first)
    return module, x, factors


@calls
@pytest.mark.parametrize("states", [False, True], ids=["zeros", "hx"])
def test_options(name, states, backend, device):
    module, x, factors = call_of(name)
    rows = None if CALLS[name][1] == "unbatched" else N
    hx = make_states(module, rows, module.weight_ih_l0.dtype) if states else None
    if factors == "tf32":
        with fp32_precision("tf32"):
            hold_tf32(module, backend, device, x, hx)
    else:
        hold(module, backend, device, x, hx, factors=factors)


def hold_tf32(module, backend, device, x, hx):
    """In TF32 the input product rounds its factors too: the budget is float32's, 13 bits wider."""
    fast = copy.deepcopy(module).to(device)
    fast.backend = backend
    got = run(fast, x.to(device), None if hx is None else tuple(s.to(device) for s in hx))
    wide = None if hx is None else tuple(s.double() for s in hx)
    oracle = run(copy.deepcopy(module).double(), x.double(), wide, dtype=torch.float32)
    low = run(module, x, hx)
    scale = 2.0**13
    errors = {k: scale * v for k, v in relative_errors(low, oracle).items()}
    return judge({k: v.cpu() for k, v in got.items()}, oracle, errors, torch.float32)


@calls
def test_beside_torch(name, backend, device):
    """nn.LSTM on the same device, with cuDNN inside, is the oracle in float64, and its error in the
    dtype the budget."""
    module, x, factors = call_of(name)
    if factors is not None and device.type == "cpu":
        pytest.skip("nn.LSTM on the CPU does not round as tensor cores do")
    if factors == "tf32":
        pytest.skip("nn.LSTM need not use TF32 where it may")
    lstm = module.to_torch().to(device)
    try:
        lstm(x.to(device))
    except RuntimeError as error:
        pytest.skip(f"nn.LSTM itself: {error}")
    module.backend = backend
    compare(module.to(device), lstm, x.to(device))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}], ids=str)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_lengths_resets_and_cells(options, kind, backend, device):
    dtype, factors = KINDS[kind]
    module = FastLSTM(I, H, 2, backend="reference", dtype=dtype, **options)
    x = make_input(T, N, I, dtype, batch_first=options.get("batch_first", False))
    mask = torch.rand(x.shape[:2]) < 0.3
    lengths = torch.tensor([3, 6, 0, 6, 2])
    given = {"lengths": lengths, "reset_mask": mask, "return_cell_sequence": True}
    hold(module, backend, device, x, make_states(module, N, dtype), factors=factors, **given)


def test_packed_and_lengths_agree(backend, device):
    lstm = FastLSTM(I, H, backend=backend, bidirectional=True).to(device)
    x = torch.randn(T, N, I, device=device)
    lengths = torch.tensor([2, 6, 1, 4, 4])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, state = lstm(packed)
    padded, _ = nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    other, other_state = lstm(x, lengths=lengths.to(device))
    torch.testing.assert_close((padded, state), (other, other_state), rtol=0, atol=0)


def test_steps_continue_a_sequence(backend, device):
    """A sequence in one call and step by step: the same products, in the same order or another."""
    module = FastLSTM(I, H, 2, backend="reference")
    x = make_input(T, N, I, torch.float32)
    fast = copy.deepcopy(module).to(device)
    fast.backend = backend
    state, outputs = None, []
    with torch.no_grad():
        for x_t in x.to(device):
            y, state = fast.step(x_t, state)
            outputs.append(y)
        exact = module.double()(x.double())[0]
        low = module.float()(x)[0]
    got, oracle = {"output": torch.stack(outputs).cpu()}, {"output": exact}
    judge(got, oracle, relative_errors({"output": low}, oracle), torch.float32)


def test_dropout_between_layers(backend, device):
    """The same seed drops the same numbers as with the reference backend on this device."""
    options = {"dropout": 0.5, "num_layers": 3}
    fast = FastLSTM(I, H, backend=backend, **options).to(device)
    other = copy.deepcopy(fast)
    other.backend = "reference"
    x = torch.randn(T, N, I, device=device)
    got, same = (run(m, x, seed=3) for m in (fast, other))
    still, exact = run(other.eval(), x), run(copy.deepcopy(other).double(), x.double())
    # Both were dropped alike, and each has the error of float32.
    errors = {k: 2 * v for k, v in relative_errors(still, exact).items()}
    judge(got, {k: v.double() for k, v in same.items()}, errors, torch.float32)
    assert not torch.equal(got["output"], still["output"])


def test_cell(device):
    cell, ours = nn.LSTMCell(I, H).to(device), FastLSTMCell(I, H).to(device)
    ours.load_state_dict(cell.state_dict())
    x = torch.randn(N, I, device=device)
    torch.testing.assert_close(ours(x), cell(x))


def test_function(backend, device):
    module = FastLSTM(I, H, backend=backend).to(device)
    x = torch.randn(T, N, I, device=device)
    result = functional.lstm(x, [module.all_weights[0]], backend=backend)
    torch.testing.assert_close(result, module(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, backend, device):
    """float32 outside, the dtype within: what a module of that dtype gives, and gradients in
    float32."""
    if device.type == "cpu" and dtype == torch.float16:
        pytest.skip("autocast to float16 is for a GPU")
    fast = FastLSTM(I, H, backend=backend).to(device)
    x = torch.randn(T, N, I, device=device, requires_grad=True)
    with torch.autocast(device.type, dtype):
        output, (h_n, c_n) = fast(x)
    assert {output.dtype, h_n.dtype, c_n.dtype} == {dtype}
    inside = copy.deepcopy(fast).to(dtype)
    expected = inside(x.to(dtype))
    torch.testing.assert_close((output, (h_n, c_n)), expected, rtol=0, atol=0)
    output.float().sum().backward()
    assert x.grad.dtype == fast.weight_hh_l0.grad.dtype == torch.float32
