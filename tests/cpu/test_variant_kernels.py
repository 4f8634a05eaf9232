"""The CPU kernels of the variants against the float64 reference, all options together; and what
they have in common with the reference bit for bit: zoneout's masks."""

from dataclasses import replace

import pytest
import torch
from op_cases import by_id, threads
from pairs import needs_library
from variant_cases import (
    CHUNKED,
    Case,
    check,
    check_chunks,
    check_frozen,
    draw,
    forward,
    sampled_cases,
)

from fastlstm import FastLSTM

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_empty")]

SAMPLED = sampled_cases(60, 11, 3e4)


@pytest.mark.sweep(but=lambda case: SAMPLED.index(case) % 3 == 0)
@pytest.mark.parametrize(**by_id(SAMPLED))
def test_any_case(case):
    check(case)


SHARED = Case(
    "recurrence", T=3, N=7, H=129, dtype=torch.float32, P=65, D=2, masks="random", norm="bias",
    mask=True, zoneout=(0.25, 0.5),
)  # fmt: skip


@pytest.mark.parametrize("case", [SHARED, replace(SHARED, P=None, norm="none")], ids=str)
def test_shared_out_over_threads_it_is_the_same(case):
    arguments, gradients = draw(case)
    del gradients
    with threads(1):
        alone = forward(case, "lstm", arguments)
    with threads(4):
        check(case)
        shared = forward(case, "lstm", arguments)
    assert all(torch.equal(alone[name], shared[name]) for name in alone)


@pytest.mark.parametrize("case", CHUNKED, ids=str)
@pytest.mark.parametrize("family", ["reference", "lstm"])
def test_states_pass_from_chunk_to_chunk_unrounded(family, case):
    check_chunks(case, family)


@pytest.mark.parametrize("family", ["reference", "lstm"])
def test_no_gradient_of_a_frozen_weight_is_formed(family, monkeypatch):
    check_frozen(family, monkeypatch)


def test_masks_are_the_references_bits():
    """Weights of 0 and a first state of 1: a unit is 1 where it kept its state."""
    case = Case("recurrence", T=1, N=5, H=67, dtype=torch.float32, D=2, zoneout=(0.3, 0.6))
    arguments, _ = draw(case)
    for place in (0, 3):
        arguments[place].zero_()
    for place in (1, 2):
        arguments[place].fill_(1)
    arguments[-1] = torch.tensor([-(2**62) + 12345])
    found, wanted = (forward(case, family, arguments) for family in ("lstm", "reference"))
    for name in ("h_n", "c_n"):
        assert torch.equal(found[name] == 1, wanted[name] == 1)
        assert 0 < (found[name] == 1).sum() < found[name].numel()


def test_the_module_takes_the_kernels_and_a_thread_more_changes_no_bit():
    lstm = FastLSTM(5, 33, 2, layer_norm=True, recurrent_dropout=0.2, zoneout=0.1, backend="cpu")
    x, runs = torch.randn(4, 3, 5), []
    for count in (1, 1, 2):
        torch.manual_seed(3)
        lstm.zero_grad()
        with threads(count):
            y, _ = lstm(x)
            y.square().sum().backward()
        runs.append([y, *(p.grad.clone() for p in lstm.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs[:2], strict=True))
    assert torch.equal(runs[0][0], runs[2][0])


def test_wrong_arguments_are_named():
    case = Case("recurrence", T=2, N=3, H=4, dtype=torch.float32, mask=True, norm="bias")
    arguments, _ = draw(case)
    for place, name, wrong in (
        (5, "h_mask", torch.ones(1, 3, 5)),
        (6, "norm_hh", torch.ones(1, 4)),
        (7, "norm_c", torch.ones(1, 4, dtype=torch.float64)),
        (11, "seed", torch.ones(2, dtype=torch.int64)),
    ):
        given = list(arguments)
        given[place] = wrong
        with pytest.raises(RuntimeError, match=f"fastlstm: {name} has"):
            forward(case, "lstm", given)
