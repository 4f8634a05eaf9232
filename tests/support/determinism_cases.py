"""Tests that the same seed gives the same bits, for whichever backend and device, as
transform_cases.py: again, under torch's deterministic setting, with every kind of dropout, through
checkpointing.
"""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from fastlstm import FastLSTM
from fastlstm.testing import make_states, named_results

T, N, I, H = 23, 7, 6, 19
DROPS = {"dropout": 0.3, "recurrent_dropout": 0.2, "weight_dropout": 0.2, "zoneout": 0.1}
OPTIONS = {
    "plain": {},
    "dropout": {"dropout": 0.3, "weight_dropout": 0.2},
    "projection": {"proj_size": 5, "dropout": 0.3},
    "variants": {"layer_norm": True, **DROPS},
}


def problem(name, backend, device, kind="lengths"):
    """A module in training, and the arguments of a call."""
    if name == "variants" and backend in ("cuda", "triton"):  # which do not serve them
        backend = "reference"
    torch.manual_seed(0)
    module = FastLSTM(I, H, 2, bidirectional=True, backend=backend, **OPTIONS[name]).to(device)
    x, lengths = torch.randn(T, N, I), torch.tensor([23, 1, 9, 4, 23, 17, 2])
    hx = tuple(s.to(device) for s in make_states(module, N, x.dtype))
    if kind == "packed":
        return module, pack_padded_sequence(x.to(device), lengths, enforce_sorted=False), hx, {}
    options = {"lengths": lengths, "reset_mask": torch.rand(T, N) < 0.1}
    return module, x.to(device), hx, {k: v.to(device) for k, v in options.items()}


def bits_of(module, x, hx, options, *, seed=1, call=None):
    """Results and gradients of a call after `seed`."""
    data = (x if isinstance(x, torch.Tensor) else x.data).requires_grad_()
    hx = tuple(s.requires_grad_() for s in hx)
    torch.manual_seed(seed)
    result = (call or module)(x, hx, **options)
    named = named_results(result)
    loss = sum((v * torch.arange(v.numel(), device=v.device).view_as(v).sin()).sum() for v in named.values())
    found = torch.autograd.grad(loss, [data, *hx, *module.parameters()])
    return [v.detach() for v in (*named.values(), *found)]


def assert_same_bits(a, b):
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(x, y), f"tensor {k} differs"


@pytest.mark.parametrize("kind", ["lengths", "packed"])
@pytest.mark.parametrize("name", OPTIONS)
def test_again_and_under_the_deterministic_setting(name, kind, backend, device):
    given = problem(name, backend, device, kind)
    first = bits_of(*given)
    assert_same_bits(first, bits_of(*given))
    torch.use_deterministic_algorithms(True)
    try:
        assert_same_bits(first, bits_of(*given))
    finally:
        torch.use_deterministic_algorithms(False)
    if name != "plain":
        assert not torch.equal(first[0], bits_of(*given, seed=2)[0])


@pytest.mark.parametrize("name", ["dropout", "variants"])
def test_forked_and_checkpointed(name, backend, device):
    """A forked generator leaves the outer stream alone; what a checkpoint computes again has the
    same masks."""
    module, x, hx, options = problem(name, backend, device)
    first = bits_of(module, x, hx, options)

    def forked(*args, **kwargs):
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            module(x)
        return module(*args, **kwargs)

    def again(x, hx, **kwargs):
        return checkpoint(module, x, hx, use_reentrant=False, **kwargs)

    for call in (forked, again):
        assert_same_bits(first, bits_of(module, x, hx, options, call=call))
