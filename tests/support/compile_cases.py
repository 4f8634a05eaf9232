"""Tests of torch.compile, for whichever backend and device, as transform_cases.py: one graph for
any T and N, training, steps, transforms inside.
"""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.func import grad, jvp
from torch.func import vmap as mapped

from fastlstm import FastLSTM, FastLSTMCell, functional

SIZES = [(4, 2), (7, 3), (13, 5), (64, 2), (5, 9), (6, 4), (9, 7), (33, 8), (17, 6), (21, 11)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def allow_rnn():
    with torch._dynamo.config.patch(allow_rnn=True):
        yield


def stacked(backend, device, bidirectional=True, **options):
    """A module, and the same as a function of x and of masks."""
    options |= {"bidirectional": bidirectional, "backend": backend}
    fast = FastLSTM(3, 5, 2, **options).to(device)
    weights = [tuple(w) for w in fast.all_weights]

    def function(x, lengths=None, reset_mask=None):
        masks = {"lengths": lengths, "reset_mask": reset_mask}
        options = {"bidirectional": bidirectional, "backend": backend}
        return functional.lstm(x, weights, **options, **masks)

    return fast, function


@pytest.mark.parametrize("how", ["dynamic", "marked"])
def test_function_is_one_graph_for_any_T_and_N(how, backend, device):
    _, function = stacked(backend, device)
    counter = CompileCounter()
    dynamic = True if how == "dynamic" else None
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
    for T, N in SIZES:
        x = torch.randn(T, N, 3, device=device)
        lengths = torch.randint(0, T + 1, (N,)).to(device)
        given = x, lengths, (torch.rand(T, N) < 0.3).to(device)
        if how == "marked":
            torch._dynamo.mark_dynamic(x, (0, 1))
            torch._dynamo.mark_dynamic(lengths, 0)
            torch._dynamo.mark_dynamic(given[2], (0, 1))
        torch.testing.assert_close(compiled(*given), function(*given), rtol=0, atol=0)
    assert counter.frame_count == 1


def test_module_is_one_graph_for_any_T_and_N(backend, device, allow_rnn):
    fast, _ = stacked(backend, device, batch_first=True)
    counter = CompileCounter()
    compiled = torch.compile(fast, backend=counter, fullgraph=True, dynamic=True)
    for T, N in SIZES:
        x = torch.randn(N, T, 3, device=device)
        torch.testing.assert_close(compiled(x), fast(x), rtol=0, atol=0)
    assert counter.frame_count == 1


def trained(function, leaves, x):
    output, (h_n, c_n) = function(x)
    value = output.sin().sum() + h_n.cos().sum() + c_n.sum()
    return output, *torch.autograd.grad(value, [x, *leaves])


def test_function_in_training(backend, device):
    fast, function = stacked(backend, device)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    leaves = list(fast.parameters())
    for T, N in SIZES[1:3]:
        x = torch.randn(T, N, 3, device=device, requires_grad=True)
        torch.testing.assert_close(trained(compiled, leaves, x), trained(function, leaves, x))


# Dynamo looks at .grad of what comes out of the first part.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_model_under_default_compile(backend, device):
    """Without allow_rnn, the graph breaks around the module; the parts are right together."""
    fast, _ = stacked(backend, device)
    model = nn.Sequential(nn.Linear(4, 3).to(device), fast)
    compiled = torch.compile(model, backend="aot_eager")
    leaves = list(model.parameters())
    x = torch.randn(4, 2, 4, device=device, requires_grad=True)
    torch.testing.assert_close(trained(compiled, leaves, x), trained(model, leaves, x))


def test_cell_and_step(backend, device, allow_rnn):
    cell = FastLSTMCell(3, 5, backend=backend).to(device)
    fast = FastLSTM(3, 5, 2, backend=backend).to(device)
    counter = CompileCounter()
    steps = torch.compile(
        lambda x, *state: (cell(x, state[:2]), fast.step(x, state[2:])),
        backend=counter,
        fullgraph=True,
        dynamic=True,
    )
    for N in (4, 6, 9):  # not the number of layers: torch takes equal sizes at first for one
        x, h, c = torch.randn(N, 3), *torch.randn(2, N, 5)
        given = [t.to(device) for t in (x, h, c, *torch.randn(2, 2, N, 5))]
        expected = cell(x.to(device), tuple(given[1:3])), fast.step(given[0], tuple(given[3:]))
        torch.testing.assert_close(steps(*given), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("transform", ["vmap", "grad", "per-sample", "jvp"])
def test_transforms_are_one_graph(transform, backend, device):
    fast, function = stacked(backend, device, bidirectional=False)
    fast.requires_grad_(False)  # or there is a graph for one derivative more

    def value(x):
        return function(x)[0].sin().sum()

    transformed = {
        "vmap": mapped(value),
        "grad": grad(lambda x: mapped(value)(x).square().sum()),
        "per-sample": mapped(grad(value)),
        "jvp": lambda x: jvp(mapped(value), (x,), (x.cos(),)),
    }[transform]
    compiled = torch.compile(transformed, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 4, 2, 3, device=device)
    torch.testing.assert_close(compiled(x), transformed(x))
