"""Derivatives on a GPU: numerical checks in float64, second derivatives, eval mode, compilation."""

import dataclasses

import pytest
import torch
from on_device import prefix_of, scaled
from op_cases import Case, draw, forward, to
from torch.autograd import gradcheck, gradgradcheck

from fastlstm import FastLSTM, functional

pytestmark = pytest.mark.gpu

SMALL = [
    Case("recurrence", T=3, N=2, H=3, dtype=torch.float64, D=2, masks="random"),
    Case("recurrence", T=4, N=3, H=4, P=2, dtype=torch.float64),
    Case("layer", T=3, N=2, I=2, H=3, dtype=torch.float64, D=2, masks="random"),
    Case("layer", T=4, N=3, I=2, H=4, P=2, dtype=torch.float64, biases=1, masks="resets"),
]
small = pytest.mark.parametrize("case", SMALL, ids=str)


def leaves_of(case, device):
    arguments = to(torch.float64, draw(case)[0], device)
    places = [k for k, a in enumerate(arguments) if a is not None and a.is_floating_point()]
    return arguments, [arguments[k].requires_grad_() for k in places], places


def function_of(case, family, arguments, places):
    def function(*leaves):
        given = list(arguments)
        for k, leaf in zip(places, leaves, strict=True):
            given[k] = leaf
        return tuple(forward(case, family, given).values())[:4]

    return function


@small
def test_first_derivative(case, backend, device):
    arguments, leaves, places = leaves_of(case, device)
    function = function_of(case, prefix_of(backend), arguments, places)
    assert gradcheck(function, leaves, fast_mode=True)


@small
def test_second_derivative(case, backend, device):
    case = dataclasses.replace(case, T=2)
    arguments, leaves, places = leaves_of(case, device)
    function = function_of(case, prefix_of(backend), arguments, places)
    assert gradgradcheck(function, leaves, fast_mode=True)


def test_gradient_penalty(backend, device):
    """A loss with the input's gradient in it, through the module."""
    found = []
    for name in (backend, "reference"):
        torch.manual_seed(0)
        fast = FastLSTM(3, 5, 2, backend=name, dtype=torch.float64).to(device)
        x = torch.randn(4, 3, 3, dtype=torch.float64).to(device).requires_grad_()
        (gradient,) = torch.autograd.grad(fast(x)[0].sin().sum(), x, create_graph=True)
        penalty = (gradient.norm(dim=-1) - 1).square().mean()
        found.append(torch.autograd.grad(penalty, list(fast.parameters())))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_backward_in_eval_mode(backend, device):
    fast = FastLSTM(3, 5, 2, dropout=0.5, backend=backend).to(device).eval()
    x = torch.randn(4, 3, 3, device=device, requires_grad=True)
    fast(x)[0].sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


def test_no_gradient_wanted_leaves_no_tape(backend, device):
    fast = FastLSTM(3, 5, backend=backend).to(device)
    x = torch.randn(4, 3, 3, device=device)
    with torch.no_grad():
        quiet = fast(x)[0]
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, fast(x)[0].detach(), rtol=0, atol=0)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_function(compiler, backend, device, fresh_compiler):
    """One graph, forward and backward."""
    if compiler == "inductor" and device.type == "cpu":
        pytest.skip("a dry run has no GPU for this")
    fast = FastLSTM(3, scaled(20, 5), backend=backend).to(device)
    weights = [tuple(fast.all_weights[0])]

    def function(x):
        return functional.lstm(x.sin(), weights, backend=backend)[0].cos()

    x = torch.randn(4, 3, 3, device=device, requires_grad=True)
    compiled = torch.compile(function, backend=compiler, fullgraph=True)
    found = []
    for call in (function, compiled):
        y = call(x)
        found.append((y, *torch.autograd.grad(y.sum(), [x, *fast.parameters()])))
    torch.testing.assert_close(*found)


def test_compiled_module_allows_a_break(backend, device, fresh_compiler):
    fast = FastLSTM(3, 5, backend=backend).to(device)
    x = torch.randn(4, 3, 3, device=device)
    compiled = torch.compile(fast, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fast(x))
