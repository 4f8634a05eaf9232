"""Tests of torch.func's transforms and of forward mode, for whichever backend and device:
test_transforms.py runs them on the CPU, gpu/test_device_transforms.py on a GPU. Both bring the
fixtures `backend` and `device`. The oracle is the same transform of plain torch, or a loop.
"""

import pytest
import torch
from stack_problems import Problem, scalar
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp
from torch.func import vmap as mapped

from fastlstm import FastLSTM, FastLSTMCell
from fastlstm.backends import table
from fastlstm.ops import layer as layer_ops
from fastlstm.reference import lstm as reference

PROBLEMS = [
    Problem(),
    Problem(D=2, L=2, P=2, lengths=True, resets=True, cells=True),
    Problem(D=2, biases=False, resets=True),
]
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def tangents_of(leaves):
    return tuple(torch.randn_like(leaf) for leaf in leaves)


def prefix_of(backend: str) -> str:
    return next(row.prefix for row in table.TABLE if row.name == backend)


# Of a function of a tuple of tensors: what the transform gives, on the tensors and on tangents.
FIRST = {
    "grad": lambda f, a, v: grad(scalar(f), argnums=tuple(range(len(a))))(*a),
    "vjp": lambda f, a, v: vjp(f, *a)[1](f(*a)),
    "jvp": lambda f, a, v: jvp(f, a, v),
    "jacrev": lambda f, a, v: jacrev(f, argnums=(0, 2, 4))(*a),
    "jacfwd": lambda f, a, v: jacfwd(f, argnums=(0, 1, 3))(*a),
}
PLACES = (0, 4)  # the input and the recurrent weights
SECOND = {
    "hessian": lambda f, a, v: hessian(f, PLACES)(*a),
    "jacrev-jacrev": lambda f, a, v: jacrev(jacrev(f, PLACES), PLACES)(*a),
    "jacfwd-jacfwd": lambda f, a, v: jacfwd(jacfwd(f, PLACES), PLACES)(*a),
    "grad-jvp": lambda f, a, v: grad(lambda *b: jvp(f, b, v)[1], PLACES)(*a),
    "jvp-grad": lambda f, a, v: jvp(grad(f, PLACES), a, v),
}


@problems
@pytest.mark.parametrize("transform", FIRST)
def test_first_derivatives(transform, problem, backend, device):
    leaves, masks = tuple(problem.draw(device)), problem.masks(device)
    v = tangents_of(leaves)
    got, expected = (
        FIRST[transform](lambda *a, f=f: f(*a, **masks), leaves, v) for f in (problem.fast(backend), problem.plain())
    )
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("problem", PROBLEMS[:2], ids=str)
@pytest.mark.parametrize("transform", SECOND)
def test_second_derivatives(transform, problem, backend, device):
    leaves, masks = tuple(problem.draw(device)), problem.masks(device)
    v = tangents_of(leaves)
    got, expected = (
        SECOND[transform](scalar(lambda *a, f=f: f(*a, **masks)), leaves, v)
        for f in (problem.fast(backend), problem.plain())
    )
    torch.testing.assert_close(got, expected, **EXACT)


@problems
def test_batched_gradients_of_a_gradient(problem, backend, device):
    """As `torch.autograd.functional.hessian(..., vectorize=True)` takes them."""
    leaves, masks = tuple(problem.draw(device)), problem.masks(device)
    found = []
    for f in (problem.fast(backend), problem.plain()):
        given = [leaf.detach().requires_grad_() for leaf in leaves]
        pick = given[0], given[4]
        grads = torch.autograd.grad(scalar(f)(*given, **masks), pick, create_graph=True)
        v = [torch.linspace(-1, 1, 3 * g.numel()).to(g).view(3, *g.shape) for g in grads]
        if not found:
            found.append(torch.autograd.grad(grads, pick, v, is_grads_batched=True))
        else:
            each = [torch.autograd.grad(grads, pick, [w[k] for w in v], retain_graph=True) for k in range(3)]
            found.append([torch.stack(d) for d in zip(*each, strict=True)])
    torch.testing.assert_close(tuple(found[0]), tuple(found[1]), **EXACT)


OUTER = {
    "none": lambda f, a: f(*a),
    "grad": lambda f, a: grad(scalar(f), argnums=PLACES)(*a),
    "vmap": lambda f, a: mapped(f, (0, *[None] * (len(a) - 1)))(torch.stack([a[0]] * 2), *a[1:]),
    "jvp": lambda f, a: jvp(f, a, tuple(torch.ones_like(leaf) for leaf in a)),
}


@problems
@pytest.mark.parametrize("outer", OUTER)
def test_functionalize(outer, problem, backend, device):
    leaves, masks = tuple(problem.draw(device)), problem.masks(device)
    fast, plain = (lambda *a, f=f: f(*a, **masks) for f in (problem.fast(backend), problem.plain()))
    got, expected = OUTER[outer](functionalize(fast), leaves), OUTER[outer](plain, leaves)
    torch.testing.assert_close(got, expected, **EXACT)


def test_functionalize_of_modules_and_of_transforms(backend, device):
    options = {"backend": backend, "device": device, "dtype": torch.float64}
    lstm, cell = FastLSTM(3, 5, 2, dropout=0.5, **options), FastLSTMCell(3, 5, **options)
    x = torch.randn(4, 2, 3, device=device, dtype=torch.float64)
    torch.manual_seed(1)
    got = functionalize(lstm)(x)
    torch.manual_seed(1)
    torch.testing.assert_close(got, lstm(x), **EXACT)
    torch.testing.assert_close(functionalize(cell)(x[0]), cell(x[0]), **EXACT)
    lstm.dropout = 0.0

    def loss(x):
        return lstm(x)[0].sin().sum()

    torch.testing.assert_close(functionalize(grad(loss))(x), grad(loss)(x), **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype, backend, device):
    """Held to float64, with the errors of plain torch in this dtype for a budget (op_cases.py)."""
    problem = Problem(D=2, P=3, lengths=True, resets=True, T=5, N=3, I=4, H=6)
    masks, errors, largest = problem.masks(device), {}, {}

    def results(function, leaves, v):
        call = lambda *a: function(*a, **masks)  # noqa: E731
        found = {f"jvp{k}": r for k, r in enumerate(jvp(call, leaves, v)[1])}
        xs = torch.stack([leaves[0], v[0]])
        value = lambda *a: sum(r.double().sin().sum() for r in call(*a))  # noqa: E731
        gradients = grad(value, tuple(range(len(leaves))))
        samples = mapped(gradients, (0, *(None,) * (len(leaves) - 1)))(xs, *leaves[1:])
        return found | {f"grad{k}": r for k, r in enumerate(samples)}

    for k in range(4):  # draws, since the error of one small tensor is a matter of luck
        leaves = tuple(t.to(dtype) for t in problem.draw(device))
        v = tangents_of(leaves)
        oracle = results(problem.plain(), *(tuple(t.double() for t in ts) for ts in (leaves, v)))
        low = results(problem.plain(), leaves, v)
        if k == 0:
            first, got = oracle, results(problem.fast(backend), leaves, v)
        for name, right in oracle.items():
            error = (low[name].double() - right).abs().max() / right.abs().max()
            errors[name[:4]] = max(errors.get(name[:4], 0.0), error.item())
            largest[name] = max(largest.get(name, 0.0), right.abs().max().item())
    for name, right in first.items():
        assert got[name].dtype == dtype
        budget = (2 * errors[name[:4]] + torch.finfo(dtype).eps / 2) * largest[name]
        assert (got[name].double() - right).abs().max().item() <= budget, name


@pytest.mark.parametrize("variant", ["layer_norm", "zoneout", "recurrent_dropout"])
def test_variants(variant, device):
    """What goes beyond the plain LSTM: plain torch under transforms."""
    options = {variant: True if variant == "layer_norm" else 0.3, "backend": "reference"}
    fast = FastLSTM(2, 3, 2, dtype=torch.float64, **options).to(device)
    x, v = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=device)

    def call(x):
        torch.manual_seed(3)
        return fast(x)[0].sin().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(call(leaf), leaf)
    torch.testing.assert_close(grad(call)(x), expected, **EXACT)
    torch.testing.assert_close(jvp(call, (x,), (v,))[1], (expected * v).sum(), **EXACT)
    got = mapped(grad(call), randomness="same")(torch.stack([x, v]))
    torch.testing.assert_close(got[0], expected, **EXACT)


def test_cell_and_step(backend, device):
    cell = FastLSTMCell(3, 4, dtype=torch.float64, backend=backend).to(device)
    fast = FastLSTM(3, 4, dtype=torch.float64, backend=backend).to(device)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            getattr(fast, name + "_l0").copy_(parameter)
    x, h, c = torch.randn(2, 3, dtype=torch.float64), *torch.randn(2, 2, 4, dtype=torch.float64)
    args = tuple(t.to(device) for t in (x, h, c))
    v = tangents_of(args)

    def by_cell(x, h, c):
        return cell(x, (h, c))

    def by_step(x, h, c):
        _, (h, c) = fast.step(x, (h[None], c[None]))
        return h[0], c[0]

    def by_layer(x, h, c):
        problem = Problem(I=3, H=4)
        weights = [fast.weight_ih_l0, fast.weight_hh_l0, fast.bias_ih_l0, fast.bias_hh_l0]
        _, h, c = problem.plain()(x[None], h[None], c[None], *weights)
        return h[0], c[0]

    transforms = {
        "jacrev": lambda f: jacrev(f, (0, 1, 2))(*args),
        "jvp": lambda f: jvp(f, args, v),
        "vmap": lambda f: mapped(f)(*(a.unsqueeze(1) for a in args)),
        "hessian": lambda f: hessian(scalar(f), (0, 2))(*args),
    }
    for transform in transforms.values():
        expected = transform(by_layer)
        for function in (by_cell, by_step):
            torch.testing.assert_close(transform(function), expected, **EXACT)


def test_forward_mode_of_autograd(backend, device):
    """torch.autograd.forward_ad on a module: tangents of inputs and of parameters, and reverse
    mode over them."""
    options = {"bidirectional": True, "dtype": torch.float64}
    fast = FastLSTM(3, 4, 2, backend=backend, **options).to(device)
    x, v = torch.randn(2, 3, 2, 3, dtype=torch.float64, device=device)
    names = [n for n, _ in fast.named_parameters()]
    values = tuple(p.detach() for p in fast.parameters())
    changes = tangents_of(values)

    def function(x, *values):
        output, states = functional_call(fast, dict(zip(names, values, strict=True)), (x,))
        return output, *states

    expected = jvp(function, (x, *values), (v, *changes))[1]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, b) for a, b in zip((x, *values), (v, *changes), strict=True)]
        results = [forward_ad.unpack_dual(r) for r in function(*duals)]
        plain = function(x, *values)
        for (primal, tangent), right, wanted in zip(results, plain, expected, strict=True):
            assert torch.equal(primal, right)
            torch.testing.assert_close(tangent, wanted, **EXACT)
        leaf = x.clone().requires_grad_()
        tangent = forward_ad.unpack_dual(fast(forward_ad.make_dual(leaf, v))[0]).tangent
        (got,) = torch.autograd.grad(tangent.sin().sum(), leaf)
    value = lambda x: jvp(lambda x: fast(x)[0], (x,), (v,))[1].sin().sum()  # noqa: E731
    torch.testing.assert_close(got, grad(value)(x), **EXACT)


def test_tangents_of_the_tape(backend, device):
    """What only a derivative of higher order reads: also where steps do not exist."""
    problem = Problem(D=1, P=2, lengths=True, resets=True, T=5)
    x, h0, c0, *weights = problem.draw(device)
    masks = [problem.masks(device)[name] for name in ("lengths", "reset_mask")]
    v = tangents_of((x, h0, c0))

    def layer(x, h0, c0):
        rest = *weights, *(None,) * 5, *masks, False, True, True
        return layer_ops.layer(prefix_of(backend), (x, h0, c0, *rest), True)

    def plain(x, h0, c0):
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = weights
        gates = (x @ weight_ih.t() + bias_ih + bias_hh).unsqueeze(2)
        return reference.lstm_forward(gates, h0, c0, weight_hh[None], weight_hr[None], *masks)

    got, expected = (jvp(f, (x, h0, c0), v) for f in (layer, plain))
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("T, N", [(0, 2), (3, 0), (1, 1)])
def test_empty(T, N, backend, device):
    problem = Problem(D=2, P=2, T=T, N=N)
    args = tuple(problem.draw(device))
    function = problem.fast(backend)
    got = jvp(function, args, tangents_of(args))[1]
    assert [g.shape for g in got] == [r.shape for r in function(*args)]
    per_sample = mapped(grad(lambda *a: scalar(function)(*a), (0, 3, 4)), (0, *(None,) * (len(args) - 1)))
    found = per_sample(torch.stack([args[0]] * 2), *args[1:])
    assert [f.shape for f in found] == [(2, *args[k].shape) for k in (0, 3, 4)]
    assert all(f.isfinite().all() for f in found)
