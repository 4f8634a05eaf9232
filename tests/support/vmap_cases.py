"""Tests of vmap, for whichever backend and device, as transform_cases.py: over inputs, states and
masks, over weights, and around gradients. The oracle is a loop, or vmap of plain torch.
"""

import copy

import pytest
import torch
from stack_problems import Calls, Problem, scalar
from torch.func import functional_call, grad, jvp, stack_module_state
from torch.func import vmap as mapped
from transform_cases import EXACT, prefix_of, problems, tangents_of

from fastlstm import FastLSTM


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
    assert calls.count[f"{prefix_of(backend)}_layer_forward"] == problem.L
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
    prefix = prefix_of(backend)
    expected = {f"{prefix}_layer_forward": problem.L, f"{prefix}_backward": problem.L}
    assert {name: calls.count[name] for name in expected} == expected
    expected = loop(gradient, in_dims, (xs, h0s, c0, *weights))
    torch.testing.assert_close(got, expected, **EXACT)
    # Samples of samples: two batch dimensions.
    once, twice = xs.unflatten(0, (2, 2)), h0s.unflatten(1, (2, 2))
    got = mapped(mapped(gradient, in_dims), (0, 1, None, *in_dims[3:]))(once, twice, c0, *weights)
    got = tuple(g.flatten(0, 1) for g in got)
    torch.testing.assert_close(got, expected, **EXACT)


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
