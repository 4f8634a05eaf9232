"""Tests of torch.func's transforms and of forward mode, for whichever backend and device:
test_transforms.py runs them on the CPU, gpu/test_device_transforms.py on a GPU. Both bring the
fixtures `backend` and `device`. The oracle is the same transform of plain torch, or a loop.
"""

import copy

import pytest
import torch
from stack_problems import Calls, Problem, scalar
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp
from torch.func import vmap as mapped

from fastlstm import FastLSTM, FastLSTMCell, backends, layer_ops, reference

PROBLEMS = [
    Problem(),
    Problem(D=2, L=2, P=2, lengths=True, resets=True, cells=True),
    Problem(D=2, biases=False, resets=True),
]
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def tangents_of(leaves):
    return tuple(torch.randn_like(leaf) for leaf in leaves)


def family_of(backend: str) -> str:
    return next(row.family for row in backends.TABLE if row.name == backend)


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
        FIRST[transform](lambda *a, f=f: f(*a, **masks), leaves, v)
        for f in (problem.fast(backend), problem.plain())
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


def loop(function, in_dims, args):
    """What vmap is to give: one call for each member."""
    count = next(a.shape[d] for a, d in zip(args, in_dims, strict=True) if d is not None)
    results = [
        function(*(a if d is None else a.select(d, k) for a, d in zip(args, in_dims, strict=True)))
        for k in range(count)
    ]
    return tuple(torch.stack(r) for r in zip(*results, strict=True))


def spread(tensors, in_dims, B=3):
    """Each tensor B times where it has a dimension for that, with other numbers."""
    made = []
    for tensor, d in zip(tensors, in_dims, strict=True):
        if d is None:
            made.append(tensor)
        elif tensor.is_floating_point():
            made.append(torch.stack([torch.randn_like(tensor) for _ in range(B)], d))
        else:
            made.append(torch.stack([tensor[torch.randperm(len(tensor))] for _ in range(B)], d))
    return made


# Where the batch is, in x, h0, c0, lengths and reset_mask.
IN_DIMS = [
    (0, None, None, None, None),
    (2, 1, None, None, 0),
    (-1, 0, 2, 0, 2),
    (None, None, None, 0, None),
    (None, None, 0, None, 1),
]


@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_over_inputs_is_one_call(in_dims, backend, device):
    problem = Problem(D=2, L=2, P=2, lengths=True, resets=True, cells=True, N=3)
    x, h0, c0, *weights = problem.draw(device)
    masks = problem.masks(device)
    args = spread([x, h0, c0, masks["lengths"], masks["reset_mask"]], in_dims)

    def function(x, h0, c0, lengths, reset_mask):
        call = problem.fast(backend)
        return call(x, h0, c0, *weights, lengths=lengths, reset_mask=reset_mask)

    with Calls() as calls:
        got = mapped(function, in_dims)(*args)
    assert calls.count[f"{family_of(backend)}_layer_forward"] == problem.L
    torch.testing.assert_close(got, loop(function, in_dims, args), **EXACT)


@problems
def test_gradients_through_vmap(problem, backend, device):
    """vmap inside of a gradient and of a jvp; and vmap inside of vmap."""
    x, h0, c0, *weights = problem.draw(device)
    masks, xs = problem.masks(device), torch.randn(2, 4, *x.shape, device=device).to(x)
    v = tangents_of((xs, *weights))
    found = []
    for f in (problem.fast(backend), problem.plain()):

        def value(xs, *weights, f=f):
            one = scalar(lambda x: f(x, h0, c0, *weights, **masks))
            return mapped(mapped(one, in_dims=2), out_dims=1)(xs.movedim(1, 3)).square().sum()

        argnums = tuple(range(1 + len(weights)))
        found.append((grad(value, argnums)(xs, *weights), jvp(value, (xs, *weights), v)))
    torch.testing.assert_close(*found, **EXACT)


@problems
def test_per_sample_gradients(problem, backend, device):
    """As a loop's, by one call of the kernels a layer in either direction."""
    x, h0, c0, *weights = problem.draw(device)
    masks = problem.masks(device)
    xs, h0s = spread([x, h0], (0, 1), B=4)
    function = problem.fast(backend)

    def value(x, h0, c0, *weights):
        return scalar(function)(x, h0, c0, *weights, **masks)

    in_dims = (0, 1, None, *(None for _ in weights))
    gradient = grad(value, argnums=tuple(range(3 + len(weights))))
    with Calls() as calls:
        got = mapped(gradient, in_dims)(xs, h0s, c0, *weights)
    family = family_of(backend)
    expected = {f"{family}_layer_forward": problem.L, f"{family}_backward": problem.L}
    assert {name: calls.count[name] for name in expected} == expected
    torch.testing.assert_close(got, loop(gradient, in_dims, (xs, h0s, c0, *weights)), **EXACT)


def test_per_sample_gradients_of_a_module(backend, device):
    """The recipe of torch's own tutorial, in float32."""
    fast = FastLSTM(3, 5, 2, bidirectional=True, batch_first=True, backend=backend).to(device)
    parameters = {k: p.detach() for k, p in fast.named_parameters()}
    xs = torch.randn(4, 6, 3, device=device)

    def loss(parameters, x):
        return functional_call(fast, parameters, (x.unsqueeze(0),))[0].square().mean()

    got = mapped(grad(loss), in_dims=(None, 0))(parameters, xs)
    for k, x in enumerate(xs):
        expected = grad(loss)(parameters, x)
        torch.testing.assert_close({n: g[k] for n, g in got.items()}, expected)


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


def test_meta_learning(backend, device):
    """MAML: the gradient of a loss after a step of each task's own; grad(vmap(grad))."""
    problem = Problem(D=2, P=2, resets=True)
    x, h0, c0, *weights = problem.draw(device)
    masks, xs = problem.masks(device), torch.randn(3, *x.shape, device=device).to(x)
    found = []
    for f in (problem.fast(backend), problem.plain()):

        def after_a_step(weights, x, f=f):
            def loss(weights):
                return scalar(f)(x, h0, c0, *weights, **masks)

            step = grad(loss)(weights)
            return loss([w - 0.1 * s for w, s in zip(weights, step, strict=True)])

        total = lambda weights: mapped(after_a_step, (None, 0))(weights, xs).sum()  # noqa: E731
        found.append(grad(total)(weights))
    torch.testing.assert_close(*found, **EXACT)


def test_ensembles(backend, device):
    """Stacked weights, of inputs that are shared and of a member's own: forward and gradient."""
    options = {"bidirectional": True, "proj_size": 2, "dtype": torch.float64, "backend": backend}
    models = [FastLSTM(3, 4, 2, **options).to(device) for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    parameters = {k: p.detach() for k, p in parameters.items()}
    base = copy.deepcopy(models[0]).to("meta")
    xs = torch.randn(3, 4, 2, 3, dtype=torch.float64, device=device)

    def call(parameters, x):
        return functional_call(base, (parameters, {}), (x,))[0]

    assert not buffers
    got = mapped(call, (0, None))(parameters, xs[0])
    expected = torch.stack([m(xs[0])[0] for m in models])
    torch.testing.assert_close(got, expected, **EXACT)
    gradients = mapped(grad(lambda p, x: call(p, x).sin().sum()))(parameters, xs)
    for k, (model, x) in enumerate(zip(models, xs, strict=True)):
        model(x)[0].sin().sum().backward()
        expected = {n: p.grad for n, p in model.named_parameters()}
        torch.testing.assert_close({n: g[k] for n, g in gradients.items()}, expected, **EXACT)


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_dropout_in_vmap(randomness, backend, device):
    fast = FastLSTM(3, 16, 2, dropout=0.5, backend=backend).to(device)
    x = torch.randn(4, 2, 3, device=device)
    call = mapped(lambda x: fast(x)[0], randomness=randomness)
    same = x.expand(3, *x.shape)
    if randomness == "error":
        with pytest.raises(RuntimeError, match="randomness"):
            call(same)
        return
    results = call(same)
    assert torch.equal(results[0], results[1]) == (randomness == "same")


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
        duals = [
            forward_ad.make_dual(a, b) for a, b in zip((x, *values), (v, *changes), strict=True)
        ]
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
        return layer_ops.layer(family_of(backend), (x, h0, c0, *rest), True)

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
    per_sample = mapped(
        grad(lambda *a: scalar(function)(*a), (0, 3, 4)), (0, *(None,) * (len(args) - 1))
    )
    found = per_sample(torch.stack([args[0]] * 2), *args[1:])
    assert [f.shape for f in found] == [(2, *args[k].shape) for k in (0, 3, 4)]
    assert all(f.isfinite().all() for f in found)
