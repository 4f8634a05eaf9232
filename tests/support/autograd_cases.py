"""Tests of what torch.autograd offers, for whichever backend and device, as transform_cases.py:
numerical checks of all derivatives, gradient penalties, checkpointing, hooks, anomaly mode.
"""

import copy

import pytest
import torch
from stack_problems import Problem, scalar
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from fastlstm import FastLSTM

SIZES = {"T": 2, "H": 2}
# Each value of an option meets each of another.
GRID = [
    Problem(**SIZES),
    Problem(D=2, L=2, P=1, lengths=True, resets=True, cells=True, **SIZES),
    Problem(D=2, lengths=True, cells=True, biases=False, **SIZES),
    Problem(L=2, P=1, resets=True, biases=False, **SIZES),
    Problem(P=1, lengths=True, **SIZES),
    Problem(L=2, lengths=True, cells=True, **SIZES),
    Problem(D=2, resets=True, **SIZES),
]
grid = pytest.mark.parametrize("problem", GRID, ids=str)
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def vector_function(problem, backend, device):
    """The problem as one vector of all numbers that go in, and a function of it to a vector of all
    results: one comparison for a numerical check in fast mode, which draws a direction in each."""
    leaves = problem.draw(device)
    masks, function = problem.masks(device), problem.fast(backend)
    sizes, shapes = [leaf.numel() for leaf in leaves], [leaf.shape for leaf in leaves]

    def call(vector):
        parts = zip(vector.split(sizes), shapes, strict=True)
        return torch.cat([r.flatten() for r in function(*(p.view(s) for p, s in parts), **masks)])

    return torch.cat([leaf.flatten() for leaf in leaves]).requires_grad_(), call


@grid
def test_first_derivatives_of_both_modes(problem, backend, device):
    vector, function = vector_function(problem, backend, device)
    assert gradcheck(
        function,
        vector,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@grid
def test_second_derivatives(problem, backend, device):
    vector, function = vector_function(problem, backend, device)
    assert gradgradcheck(function, vector, fast_mode=True, check_fwd_over_rev=True)


class Critic(nn.Module):
    """Scores of sequences (T, N, I), of an LSTM that is given."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm
        self.head = nn.Linear(lstm.hidden_size * (1 + lstm.bidirectional), 1).to(lstm.weight_hh_l0)

    def forward(self, x):
        return self.head(self.lstm(x)[0].mean(0))


def train_critic(critic, device, steps=3):
    """WGAN-GP (Gulrajani et al. 2017, "Improved training of Wasserstein GANs"): the gradient of the
    score with respect to a point between a real and a made sequence is to have norm 1."""
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01, betas=(0.0, 0.9))
    generator = torch.Generator().manual_seed(5)
    losses = []
    for _ in range(steps):
        real, made = torch.randn(2, 6, 4, 3, generator=generator, dtype=torch.float64).to(device)
        share = torch.rand(1, 4, 1, generator=generator, dtype=torch.float64).to(device)
        between = (share * real + (1 - share) * made).requires_grad_()
        score = critic(between).sum()
        (gradient,) = torch.autograd.grad(score, between, create_graph=True)
        penalty = (gradient.transpose(0, 1).flatten(1).norm(dim=1) - 1).square().mean()
        loss = critic(made).mean() - critic(real).mean() + 10 * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().cpu())
    return torch.stack(losses), [p.detach().cpu() for p in critic.parameters()]


def test_gradient_penalty_trains_as_nn_lstm_does(backend, device):
    """nn.LSTM's run is on the CPU, where it has a second derivative."""
    torch.manual_seed(2)
    lstm = nn.LSTM(3, 5, 2, bidirectional=True, dtype=torch.float64)
    critic = Critic(lstm)
    fast = copy.deepcopy(critic)
    fast.lstm = FastLSTM.from_torch(lstm, backend=backend)
    expected = train_critic(critic, torch.device("cpu"))
    got = train_critic(fast.to(device), device)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def module_and_input(backend, device, **options):
    fast = FastLSTM(3, 5, 2, dtype=torch.float64, backend=backend, **options).to(device)
    return fast, torch.randn(4, 2, 3, dtype=torch.float64, device=device)


def gradients_of(module, call, x):
    x = x.clone().requires_grad_()
    output, (h_n, c_n) = call(x)
    value = output.sin().sum() + h_n.cos().sum() + c_n.sum()
    return torch.autograd.grad(value, [x, *module.parameters()])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant, backend, device):
    """Recomputed, dropout's masks included."""
    fast, x = module_and_input(backend, device, bidirectional=True, dropout=0.5)
    x = x.repeat(2, 1, 1)  # up to four steps are rounded otherwise where there is no gradient
    found = []

    def call(x):
        # The reentrant way takes no results within results.
        output, states = fast(x)
        return output, *states

    for function in (call, lambda x: checkpoint(call, x, use_reentrant=use_reentrant)):
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        scalar(function)(leaf).backward()
        found.append([leaf.grad, *(p.grad for p in fast.parameters())])
        fast.zero_grad()
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_saved_tensors_may_be_moved_away(backend, device):
    fast, x = module_and_input(backend, device, proj_size=2)
    expected, kept = gradients_of(fast, fast, x), []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor.cpu().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t.to(device)):
        got = gradients_of(fast, fast, x)
    assert sum(kept) >= 2 * 4 * 2 * 4 * 5  # the gates of two layers
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def hooked(module, x):
    """All that hooks of every kind see in a forward and backward."""
    seen = []

    def note(kind):
        return lambda *args: seen.append((kind, [a for a in flat(args) if torch.is_tensor(a)]))

    def flat(value):
        if isinstance(value, (tuple, list)):
            return [leaf for v in value for leaf in flat(v)]
        return [value]

    handles = [
        module.register_forward_pre_hook(note("forward pre")),
        module.register_forward_hook(note("forward")),
        module.register_full_backward_pre_hook(note("backward pre")),
        module.register_full_backward_hook(note("backward")),
        module.weight_hh_l0.register_hook(note("weight")),
        module.weight_ih_l1.register_hook(lambda g: 2 * g),
        module.bias_ih_l0.register_post_accumulate_grad_hook(lambda p: seen.append(("acc", [p.grad]))),
    ]
    x = x.clone().requires_grad_()
    output, (h_n, _) = module(x)
    output.register_hook(note("output"))
    h_n.register_hook(lambda g: 3 * g)
    output.retain_grad()
    (output.sin().sum() + h_n.cos().sum()).backward()
    seen.append(("grads", [x.grad, output.grad, *(p.grad for p in module.parameters())]))
    for handle in handles:
        handle.remove()
    return [(kind, [t.detach().cpu() for t in tensors]) for kind, tensors in seen]


def test_hooks_see_what_they_see_of_nn_lstm(backend, device):
    fast, x = module_and_input(backend, device)
    found = hooked(fast, x)
    expected = hooked(fast.to_torch().cpu(), x.cpu())
    assert [kind for kind, _ in found] == [kind for kind, _ in expected]
    for (_, mine), (_, right) in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_anomaly_mode(backend, device):
    """Changes nothing, and names the layer's backward where a NaN comes out of it."""
    fast, x = module_and_input(backend, device)
    expected = gradients_of(fast, fast, x)
    with torch.autograd.detect_anomaly():
        torch.testing.assert_close(gradients_of(fast, fast, x), expected, rtol=0, atol=0)
        output = fast(x.requires_grad_())[0]
        with (
            pytest.warns(UserWarning, match="Error detected in [A-Za-z]*Layers?Backward"),
            pytest.raises(RuntimeError, match="returned nan values"),
        ):
            output.backward(torch.full_like(output, float("inf")))  # inf - inf, in the layer


@pytest.mark.parametrize("mode", ["forward-mode", "reverse-mode"])
def test_vectorised_jacobian_of_autograd(mode, backend, device):
    problem = Problem(D=2, P=2)
    x, h0, c0, *weights = problem.draw(device)
    options = {"vectorize": True, "strategy": mode}

    def jacobian(function):
        def two(x, h0):
            return scalar(function)(x, h0, c0, *weights) * torch.arange(1, 3).to(x)

        return torch.autograd.functional.jacobian(two, (x, h0), **options)

    got, expected = jacobian(problem.fast(backend)), jacobian(problem.plain())
    torch.testing.assert_close(got, expected, **EXACT)
