"""Autograd through the ops: derivatives of any order, families mixed, gradients not there."""

import dataclasses
import itertools

import pytest
import torch
from op_cases import Case, backward, check, draw, forward, op, tape_of, to
from pairs import needs_library
from torch.autograd import gradcheck, gradgradcheck

from fastlstm.ops.recurrence import PREFIXES

pytestmark = needs_library

SMALL = [
    Case("recurrence", T=3, N=2, H=3, dtype=torch.float64, D=2, masks="random"),
    Case("recurrence", T=4, N=3, H=4, P=2, dtype=torch.float64),
    Case("layer", T=3, N=2, I=2, H=3, dtype=torch.float64, D=2, masks="random"),
    Case("layer", T=4, N=3, I=2, H=4, P=2, dtype=torch.float64, biases=1, masks="resets"),
]
small = pytest.mark.parametrize("case", SMALL, ids=str)


def leaves_of(case):
    """Arguments in float64, their tensors that can be differentiated, and where these stand."""
    arguments = to(torch.float64, draw(case)[0])
    places = [k for k, a in enumerate(arguments) if a is not None and a.is_floating_point()]
    return arguments, [arguments[k].requires_grad_() for k in places], places


def function_of(case, family, arguments, places):
    """The forward's results save the gates, of the differentiable arguments."""

    def function(*leaves):
        given = list(arguments)
        for k, leaf in zip(places, leaves, strict=True):
            given[k] = leaf
        return tuple(forward(case, family, given).values())[:4]

    return function


@small
def test_first_derivative(case):
    arguments, leaves, places = leaves_of(case)
    assert gradcheck(function_of(case, "lstm", arguments, places), leaves, fast_mode=True)


@small
def test_second_derivative(case):
    arguments, leaves, places = leaves_of(case)
    function = function_of(case, "lstm", arguments, places)
    assert gradgradcheck(function, leaves, fast_mode=True)


@small
def test_third_derivative(case):
    """By the chain: the gradient of a gradient's gradient, against the reference's."""
    arguments, leaves, places = leaves_of(case)
    found = []
    for family in PREFIXES:
        value = sum(r.cos().sum() for r in function_of(case, family, arguments, places)(*leaves))
        for _ in range(2):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.sin().sum() for g in grads)
        found.append(torch.autograd.grad(value, leaves))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@small
def test_families_mix(case):
    """The forward of one family and the backward of another: one tape."""
    arguments, gradients = (to(torch.float64, part) for part in draw(case))
    found = {}
    for first, second in itertools.product(PREFIXES, repeat=2):
        results = forward(case, first, arguments)
        found[first, second] = backward(case, second, arguments, gradients, tape_of(results))
    expected = found["reference", "reference"]
    for got in found.values():
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@small
def test_only_what_needs_a_gradient(case):
    """Each argument differentiated alone has the gradient it has among all."""
    arguments, leaves, places = leaves_of(case)
    results = function_of(case, "lstm", arguments, places)(*leaves)
    weights = [torch.randn_like(r) for r in results]
    together = torch.autograd.grad(results, leaves, weights)
    detached = [a if a is None else a.detach() for a in arguments]
    for k, expected in zip(places, together, strict=True):
        leaf = detached[k].clone().requires_grad_()
        results = function_of(case, "lstm", detached, [k])(leaf)
        (alone,) = torch.autograd.grad(results, [leaf], weights)
        torch.testing.assert_close(alone, expected, rtol=0, atol=0)


@small
def test_gradients_that_are_not_there_are_zeros(case):
    arguments, gradients = (to(torch.float64, part) for part in draw(case))
    tape = tape_of(forward(case, "lstm", arguments))
    for present in itertools.product((False, True), repeat=4):
        pairs = list(zip(gradients, present, strict=True))
        absent = [g if p else None for g, p in pairs]
        zeros = [g if p else torch.zeros_like(g) for g, p in pairs]
        got, expected = (backward(case, "lstm", arguments, g, tape) for g in (absent, zeros))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entry", ["recurrence", "layer"])
@pytest.mark.parametrize("present", range(16))
def test_gradients_that_are_not_there(entry, present, dtype):
    """Against the reference, with lanes left over and without."""
    sizes = {"T": 3, "N": 3, "I": 4, "H": 18, "P": 16 if present % 3 else None}
    check(Case(entry, **sizes, dtype=dtype, gradients=present, masks="random", D=2))


@small
def test_without_a_tape_there_is_no_gradient(case):
    arguments, leaves, _ = leaves_of(case)
    results = forward(case, "lstm", arguments, save_tape=False)
    with pytest.raises(RuntimeError, match="save_tape=True"):
        torch.autograd.grad(results["output"].sum(), leaves)


@small
def test_gradients_share_no_memory(case):
    arguments, leaves, places = leaves_of(case)
    results = function_of(case, "lstm", arguments, places)(*leaves)
    sum(r.sum() for r in results).backward()
    pointers = [leaf.grad.data_ptr() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)
    for leaf in leaves:  # as an optimiser would change them, in place
        others = [a.grad.clone() for a in leaves if a is not leaf]
        leaf.grad.add_(1)
        assert all(torch.equal(a.grad, b) for a, b in zip((a for a in leaves if a is not leaf), others, strict=True))


@small
def test_masks_have_no_gradient(case):
    case = dataclasses.replace(case, masks="random")
    arguments, _, _ = leaves_of(case)
    switches = [case.wide] * (case.entry == "layer") + [True, True]
    output = op(case.entry, "lstm", "forward")(*arguments, *switches)[0]
    output.sum().backward()
    assert arguments[-1].grad is None and arguments[-2].grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("entry", ["recurrence", "layer"])
def test_gradients_have_their_tensors_dtypes(entry, wide, dtype):
    case = Case(entry, T=3, N=2, H=5, P=4, dtype=dtype, wide=wide, D=2, masks="random")
    arguments = draw(case)[0]
    leaves = [a.requires_grad_() for a in arguments if a is not None and a.is_floating_point()]
    results = forward(case, "lstm", arguments)
    sum(r.float().sum() for r in list(results.values())[:4]).backward()
    for leaf in leaves:
        assert leaf.grad.dtype == leaf.dtype and leaf.grad.shape == leaf.shape
        assert leaf.grad.isfinite().all()
