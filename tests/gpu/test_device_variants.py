"""Layer normalisation, recurrent dropout, weight dropout, zoneout and checkpoints on a GPU."""

import copy
from dataclasses import replace

import pytest
import torch
import variant_cases
from on_device import KINDS, prefix_of, scaled
from op_cases import by_id

from benchmarks.common.precision import fp32_precision
from fastlstm import FastLSTM
from fastlstm.testing import make_states, run

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_empty")]

T, N, I, H = 7, 5, 3, scaled(20, 6)
ALL = {"layer_norm": True, "recurrent_dropout": 0.4, "weight_dropout": 0.3, "zoneout": (0.25, 0.5)}


SAMPLED = variant_cases.sampled_cases(scaled(8, 1), 31, scaled(30_000, 500))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(**by_id(SAMPLED))
def test_recurrence(case, kind, backend, device):
    dtype, factors = KINDS[kind]
    case = replace(case, dtype=dtype, wide=case.wide and dtype.itemsize == 2)
    with fp32_precision("ieee"):
        torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
        variant_cases.check(case, prefix_of(backend), factors=factors, device=device)


def test_masks_of_zoneout_are_the_references_bits(backend, device):
    """Weights of 0 and a first state of 1: a unit is 1 where it kept its state."""
    case = variant_cases.Case("recurrence", T=1, N=5, H=37, dtype=torch.float32, zoneout=(0.3, 0.6))
    arguments, _ = variant_cases.draw(case)
    for place, value in ((0, 0), (1, 1), (2, 1), (3, 0)):
        arguments[place].fill_(value)
    wanted = variant_cases.forward(case, "reference", arguments)
    arguments = [a if a is None else a.to(device) for a in arguments]
    found = variant_cases.forward(case, prefix_of(backend), arguments)
    for name in ("h_n", "c_n"):
        assert torch.equal(found[name].cpu() == 1, wanted[name] == 1)


def states_of(module, device):
    return tuple(s.to(device) for s in make_states(module, N, torch.float64))


def close(got: dict, wanted: dict) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-11)


def options_of(device):
    lengths, mask = torch.tensor([3, 7, 0, 7, 2]), torch.rand(T, N) < 0.3
    given = {"lengths": lengths.to(device), "reset_mask": mask.to(device)}
    return given | {"return_cell_sequence": True}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("checkpoint", [None, 3])
def test_module(checkpoint, training, backend, device):
    """The same seed masks the same numbers as with the reference backend on this device."""
    options = {"bidirectional": True, "dropout": 0.5, "checkpoint_every": checkpoint, **ALL}
    fast = FastLSTM(I, H, 2, backend=backend, dtype=torch.float64, **options).to(device)
    fast.train(training)
    other = copy.deepcopy(fast)
    other.backend, other.checkpoint_every = "reference", None
    x = torch.randn(T, N, I, dtype=torch.float64, device=device)
    hx, given = states_of(fast, device), options_of(device)
    close(run(fast, x, hx, seed=3, **given), run(other, x, hx, seed=3, **given))


MODELS = {
    "plain-L3": {"num_layers": 3},
    "plain-D2": {"bidirectional": True, "num_layers": 2, "proj_size": 4},
    "variants-L2": {"num_layers": 2, **ALL},
    "variants-D2": {"bidirectional": True, "num_layers": 2, "dropout": 0.5, "proj_size": 4, **ALL},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("masks", [False, True])
def test_checkpoints_change_no_result(model, masks, backend, device):
    fast = FastLSTM(I, H, backend=backend, dtype=torch.float64, **MODELS[model]).to(device)
    x = torch.randn(T, N, I, dtype=torch.float64, device=device)
    hx, given = states_of(fast, device), options_of(device) if masks else {}
    wanted = run(fast, x, hx, **given)
    fast.checkpoint_every = 3
    close(run(fast, x, hx, **given), wanted)


@pytest.mark.usefixtures("real_gpu")
@pytest.mark.parametrize("model", ["plain-L3", "variants-L2"])
def test_checkpoints_need_less_memory(model, backend, device):
    grown = []
    for every in (None, 64):
        options = {"backend": backend, "checkpoint_every": every, **MODELS[model]}
        fast = FastLSTM(64, 64, **options).to(device)
        x = torch.randn(2048, 16, 64, device=device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fast(x)[0].sum().backward()
        grown.append(torch.cuda.max_memory_allocated() - before)
    assert grown[0] > 3 * grown[1]
