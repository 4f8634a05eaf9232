"""Layers as a wavefront on a GPU: its numbers. Streams, graphs and repetition:
test_device_graphs.py."""

import copy

import pytest
import torch
from chunks_of_steps import check_chunks_of_steps
from on_device import DRY, KINDS, hold, prefix_of, scaled
from op_cases import Case

from benchmarks.common.precision import fp32_precision
from fastlstm import FastLSTM
from fastlstm.nn import inputs
from fastlstm.stack import run as stack_run
from fastlstm.stack.wavefront import lanes
from fastlstm.stack.wavefront import plan as wavefront
from fastlstm.testing import make_input, make_states, run

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_empty")]

T, N, I, H = scaled(37, 5), scaled(9, 3), 5, scaled(40, 7)


@pytest.fixture
def opened(monkeypatch):
    """Wavefronts in chunks of a few steps; the numbers of lanes that were opened."""
    monkeypatch.setenv(wavefront.VARIABLE, "1")
    monkeypatch.setattr(wavefront, "LEAST_CHUNK", 1)  # shorter sequences are not asked for
    monkeypatch.setattr(wavefront, "best_chunk", lambda T, L, step, host: scaled(8, 2))
    counts, open_lanes = [], lanes.open_lanes

    def open_noted(device, count):
        counts.append(count)
        return open_lanes(device, count)

    monkeypatch.setattr(lanes, "open_lanes", open_noted)
    return counts


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("options", [{}, {"proj_size": 3, "bias": False}], ids=str)
def test_numbers(kind, options, backend, device, opened):
    dtype, factors = KINDS[kind]
    module = FastLSTM(I, H, 4, backend="reference", dtype=dtype, **options)
    x = make_input(T, N, I, dtype)
    given = {}
    if not options:
        lengths = torch.randint(0, T + 1, (N,))
        lengths[:2] = torch.tensor([0, T])
        given = {"lengths": lengths, "reset_mask": torch.rand(T, N) < 0.1}
    hold(module, backend, device, x, make_states(module, N, dtype), factors=factors, **given)
    # The backend ran first, forward and backward, then the reference.
    assert opened[:2] == [4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout_drops_what_layers_drop(dtype, backend, device, opened, monkeypatch):
    """With the same seed."""
    fast = FastLSTM(I, H, 3, dropout=0.4, backend=backend, dtype=dtype).to(device)
    x = make_input(T, N, I, dtype).to(device)
    found = run(fast, x, seed=3)
    assert set(opened) == {3}
    monkeypatch.setenv(wavefront.VARIABLE, "0")
    # Products of fewer rows may sum in another order: roundings, and nothing of a mask's size.
    for name, value in run(fast, x, seed=3).items():
        scale = float(value.abs().max())
        atol = 64 * torch.finfo(dtype).eps * scale
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("variational", [False, True])
def test_dropout_in_bfloat16_does_not_round_its_scale(variational, backend, device, monkeypatch):
    """One op for all layers beside the layers' own: 1 / 0.9 in bfloat16 would be 0.16 % less, and a
    weight's gradient, a sum, would show it. Without biases, which the two round otherwise."""
    options = {"dropout": 0.1, "bias": False, "bidirectional": True}
    fast = FastLSTM(32, 32, 3, backend=backend, dtype=torch.bfloat16, **options).to(device)
    fast.variational_dropout = variational
    x = make_input(6, 16, 32, torch.bfloat16).to(device)
    found = run(fast, x, seed=3)
    for module in (inputs, stack_run):
        monkeypatch.setattr(module, "pair_for", lambda *_: None)
    for name, layers in run(fast, x, seed=3).items():
        if "weight" in name:
            got, layers = found[name].double(), layers.double()
            share = float((got * layers).sum() / layers.square().sum()) - 1
            assert abs(share) < 6 * 2**-8 / got.numel() ** 0.5 < 4e-4, (name, share)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("P", [None, 5])
def test_a_sequence_cut_in_chunks(kind, P, backend, device):
    dtype = KINDS[kind][0]
    sizes = {"T": scaled(12, 4), "N": N, "H": H, "P": P, "dtype": dtype, "masks": "random"}
    with fp32_precision("tf32" if kind == "tf32" else "ieee"):
        check_chunks_of_steps(Case("recurrence", **sizes), prefix_of(backend), at=3, device=device)


def test_modules_that_share_nothing(backend, device, opened):
    """Two stacks in turns: what a lane has kept of one is not used by the other."""
    made = [FastLSTM(I, H, 3, backend=backend).to(device) for _ in range(2)]
    inputs = [make_input(T, N, I, torch.float32).to(device) for _ in made]
    alone = [run(copy.deepcopy(m), x) for m, x in zip(made, inputs, strict=True)]
    for _ in range(2 if DRY else 10):
        for module, x, expected in zip(made, inputs, alone, strict=True):
            for name, value in run(module, x).items():
                assert torch.equal(value, expected[name]), name
