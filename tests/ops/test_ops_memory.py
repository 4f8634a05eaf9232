"""Memory: strides of every kind, every element written, nothing shared, nothing changed."""

import dataclasses
import itertools

import pytest
import torch
from op_cases import (
    Case,
    backward,
    backward_arguments,
    by_id,
    draw,
    forward,
    op,
    sampled_cases,
    tape_of,
    to,
)
from pairs import needs_library

pytestmark = needs_library

CASES = [
    Case("recurrence", T=5, N=7, H=19, dtype=torch.float32, D=2, masks="random"),
    Case("recurrence", T=4, N=3, H=8, P=5, dtype=torch.bfloat16, wide=True, masks="random"),
    Case("recurrence", T=3, N=5, H=16, dtype=torch.float64, P=16),
    Case("layer", T=5, N=7, H=19, I=4, dtype=torch.float32, D=2, masks="random"),
    Case("layer", T=4, N=3, H=8, I=9, P=5, dtype=torch.bfloat16, wide=True, masks="random"),
    Case("layer", T=3, N=5, H=16, I=16, dtype=torch.float16, D=2, P=3),
]


def swapped(t):
    """The first two dimensions the other way round in memory, as a batch-first tensor has them."""
    return t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 1 else every_other(t)


def reversed_in_memory(t):
    """The last dimension with the largest stride."""
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order) if t.dim() > 1 else every_other(t)


def every_other(t):
    """Every second element of something twice as wide, with other numbers between."""
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), foreign(t), dtype=t.dtype)
    wide[..., ::2] = t
    return wide[..., ::2]


def part_of_wider(t):
    """The middle of wider rows, at an odd address."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 5), foreign(t), dtype=t.dtype)
    wide[..., 3:-2] = t
    return wide[..., 3:-2]


def negated(t):
    """A view whose minus is still to be carried out; other types as they are."""
    return torch._neg_view(-t) if t.is_floating_point() else t


def foreign(t):
    return float("nan") if t.is_floating_point() else 1


STRIDES = [swapped, reversed_in_memory, every_other, part_of_wider, negated]


def run(case, arguments, gradients, tape):
    return forward(case, "lstm", arguments) | backward(case, "lstm", arguments, gradients, tape)


def assert_same(case, got, expected):
    for name, value in expected.items():
        # torch's own products may go another way for other strides; nothing else may differ.
        same = {} if case.entry == "layer" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(got[name], value, **same, msg=lambda m, name=name: f"{name}: {m}")


def drawn(case):
    """Arguments, gradients and tape of a case, in its dtype."""
    dtype = torch.float64 if case.dtype == torch.float64 else None
    arguments, gradients = (to(dtype, part) for part in draw(case))
    return arguments, gradients, tape_of(forward(case, "lstm", arguments))


@pytest.mark.parametrize("change", STRIDES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(**by_id(CASES))
def test_strides_of_everything(case, change):
    problem = drawn(case)
    strided = [[t if t is None else change(t) for t in part] for part in problem]
    for before, after in zip(itertools.chain(*problem), itertools.chain(*strided), strict=True):
        assert before is None or torch.equal(before, after)
    assert_same(case, run(case, *strided), run(case, *problem))


@pytest.mark.parametrize(**by_id(CASES))
def test_expanded_everything(case):
    """Each dimension of each tensor in turn held by one element's stride of 0."""
    problem = drawn(case)
    for which, part in enumerate(problem):
        for k, t in enumerate(part):
            for dim in range(0 if t is None else t.dim()):
                expanded = t.narrow(dim, 0, 1).expand(t.shape)
                results = []
                for value in (expanded, expanded.contiguous()):
                    changed = [list(p) for p in problem]
                    changed[which][k] = value
                    results.append(run(case, *changed))
                assert_same(case, *results)


@pytest.mark.parametrize(**by_id(sampled_cases("recurrence", 10, seed=2) + sampled_cases("layer", 10, seed=3) + CASES))
def test_every_element_is_written(case, poisoned_empty):
    probe = torch.empty(3)
    assert probe.isnan().all(), "the fixture fills nothing"
    results = run(case, *drawn(case))
    for name, value in results.items():
        assert value.isfinite().all(), f"{name}: {value.isnan().sum()} of {value.numel()} not set"


@pytest.mark.parametrize(**by_id(CASES))
def test_inputs_stay_and_results_are_alone(case):
    arguments, gradients, tape = drawn(case)
    given = [t for t in (*arguments, *gradients, *tape) if t is not None]
    before = [t.clone() for t in given]
    versions = [t._version for t in given]
    results = list(run(case, arguments, gradients, tape).values())
    for t, copy, version in zip(given, before, versions, strict=True):
        assert torch.equal(t, copy) and t._version == version
    storages = [t.untyped_storage() for t in results]
    for a, b in itertools.combinations(storages, 2):
        assert a._cdata != b._cdata
        assert not a.nbytes() or a.data_ptr() != b.data_ptr()
    pointers = {t.untyped_storage().data_ptr() for t in given}
    assert not any(s.data_ptr() in pointers for s in storages if s.nbytes())


@pytest.mark.parametrize(**by_id([c for c in CASES if c.dtype != torch.float64]))
@pytest.mark.parametrize("empty", ["T", "N"])
def test_no_steps_or_no_rows_share_nothing(case, empty):
    case = dataclasses.replace(case, **{empty: 0}, masks="none")
    arguments, gradients, tape = drawn(case)
    results = run(case, arguments, gradients, tape)
    if empty == "T":
        for name, given in {"h_n": arguments[1], "c_n": arguments[2]}.items():
            assert torch.equal(results[name], given)
            assert results[name].data_ptr() != given.data_ptr()
        for name, given in {"dh0": gradients[1], "dc0": gradients[2]}.items():
            assert torch.equal(results[name], given)
            assert results[name].data_ptr() != given.data_ptr()
    for name, value in results.items():
        if name.startswith(("dweight", "dbias")):
            assert not value.any()


@pytest.mark.parametrize(**by_id(CASES))
def test_what_is_not_asked_for_is_left_out(case):
    """The switches change what is returned, not its values."""
    arguments, gradients, tape = drawn(case)
    whole = forward(case, "lstm", arguments)
    for save_tape, save_cells in itertools.product((False, True), repeat=2):
        part = forward(case, "lstm", arguments, save_tape=save_tape, save_cells=save_cells)
        for name, value in part.items():
            kept = {"cells": save_tape or save_cells, "gates": save_tape}.get(name, True)
            expected = whole[name] if kept else whole[name].new_empty(0)
            assert torch.equal(value, expected), name
    if case.entry == "layer":
        whole = backward(case, "lstm", arguments, gradients, tape)
        for need_dx, need_dweights in itertools.product((False, True), repeat=2):
            needs = {"need_dx": need_dx, "need_dweights": need_dweights}
            part = backward(case, "lstm", arguments, gradients, tape, **needs)
            for name, value in part.items():
                kept = {"dx": need_dx, "dh0": True, "dc0": True}.get(name, need_dweights)
                expected = whole[name] if kept else whole[name].new_empty(0)
                assert torch.equal(value, expected), name


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize(**by_id(CASES))
def test_the_workspace_is_not_relied_on(case, which):
    """What an earlier call left in the scratch memory must not show: numbers and NaN alike."""
    arguments, gradients, tape = drawn(case)
    expected = run(case, arguments, gradients, tape)
    spoiled = [torch.full_like(t, float("nan")) if t is not None else None for t in arguments[:-2]]
    if which == "forward":
        forward(case, "lstm", [*spoiled, None, None])
    else:
        given = [torch.full_like(g, float("nan")) for g in gradients]
        switches = backward_arguments(case, [*spoiled, None, None], given, tape)
        op(case.entry, "lstm", "backward")(*switches)
    got = run(case, arguments, gradients, tape)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
