"""Tests of autocast in use, for whichever backend and device, as transform_cases.py: contexts
within contexts, weights that change, streams, backward passes inside of it, loss scaling. That the
numbers are those of a module of autocast's dtype, bit for bit, is in feature_grid.py.
"""

import copy

import pytest
import torch
from torch import nn

from fastlstm import FastLSTM

T, N, I, H = 5, 3, 4, 6
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def module_and_input(backend, device, **options):
    fast = FastLSTM(I, H, 2, bidirectional=True, backend=backend, **options).to(device)
    return fast, torch.randn(T, N, I, device=device)


def gradients_of(loss, fast, x):
    return torch.autograd.grad(loss, [x, *fast.parameters()])


def assert_equal(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def loss_of(result):
    output, (h_n, c_n) = result
    return output.float().square().sum() + h_n.float().sin().sum() + c_n.float().cos().sum()


@dtypes
def test_switched_off_inside(dtype, backend, device):
    fast, x = module_and_input(backend, device)
    with torch.autocast(device.type, dtype):
        low = fast(x)
        with torch.autocast(device.type, enabled=False):
            whole = fast(x)
        again = fast(x)
    assert low[0].dtype == dtype
    assert_equal(whole, fast(x))
    assert_equal(again, low)


@dtypes
def test_weights_that_change_inside_are_seen(dtype, backend, device):
    """Autocast keeps the casts of parameters until it ends; an update must show all the same."""
    fast, x = module_and_input(backend, device)
    optimizer = torch.optim.SGD(fast.parameters(), lr=1.0)
    with torch.autocast(device.type, dtype):
        loss_of(fast(x)).backward()
        before = fast(x)[0]
        optimizer.step()
        after = fast(x)[0]
        assert_equal(after, copy.deepcopy(fast)(x)[0])
    assert not torch.equal(before, after)


@dtypes
def test_a_stream_is_one_of_the_low_dtype(dtype, backend, device):
    fast = FastLSTM(I, H, 2, backend=backend).to(device)
    low, state, low_state = copy.deepcopy(fast).to(dtype), None, None
    for x in torch.randn(T, N, I, device=device):
        with torch.autocast(device.type, dtype):
            y, state = fast.step(x, state)
        expected, low_state = low.step(x.to(dtype), low_state)
        assert_equal((y, state), (expected, low_state))


@dtypes
@pytest.mark.parametrize("proj_size", [0, 3])
def test_backward_inside_and_outside(dtype, proj_size, backend, device):
    """Also where autocast is on for the first time in the backward."""
    fast, x = module_and_input(backend, device, proj_size=proj_size)
    x.requires_grad_()
    with torch.autocast(device.type, dtype):
        loss = loss_of(fast(x))
        inside = gradients_of(loss, fast, x)
        loss = loss_of(fast(x))
    assert_equal(inside, gradients_of(loss, fast, x))
    plain = gradients_of(loss_of(fast(x)), fast, x)
    loss = loss_of(fast(x))
    with torch.autocast(device.type, dtype):
        late = gradients_of(loss, fast, x)
    assert_equal(late, plain)


@dtypes
def test_gradient_penalty(dtype, backend, device):
    """A second derivative through autocast is that of a module of its dtype."""
    fast, x = module_and_input(backend, device)
    found = []
    for module, context in ((fast, True), (copy.deepcopy(fast).to(dtype), False)):
        given = x.to(module.weight_hh_l0.dtype).requires_grad_()
        with torch.autocast(device.type, dtype, enabled=context):
            loss = loss_of(module(given))
            (gradient,) = torch.autograd.grad(loss, given, create_graph=True)
            penalty = gradient.to(dtype).float().square().sum()
        found.append(torch.autograd.grad(penalty, list(module.parameters()), allow_unused=True))
    for got, expected in zip(*found, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert got.dtype == torch.float32
            assert_equal(got, expected.float())


def test_loss_scaling_with_float16(backend, device):
    """The first scale overflows, so those steps are left out; then training goes on."""
    fast = FastLSTM(I, H, backend=backend).to(device)
    head = nn.Linear(H, 1).to(device)
    x, target = torch.randn(T, N, I, device=device), torch.randn(T, N, 1, device=device)
    parameters = [*fast.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**24, growth_interval=1000)
    scales, losses = [], []
    for _ in range(30):
        before = fast.weight_hh_l0.detach().clone()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16):
            loss = (head(fast(x)[0]).float() - target).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        finite = all(p.grad.isfinite().all() for p in parameters)
        nn.utils.clip_grad_norm_(parameters, 10.0)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, fast.weight_hh_l0) == (not finite)
        scales.append(scaler.get_scale())
        losses.append(loss.item())
    assert 1 <= scales[-1] < scales[0] < 2.0**24
    assert losses[-1] < losses[0]


def test_cells_add_up_in_float32(backend, device):
    """Every step adds 2^-9 to c: in bfloat16 the sum would stand still at 0.5."""
    steps, dtype = 300, torch.bfloat16
    fast = FastLSTM(1, 1, backend=backend).to(device)
    with torch.no_grad():
        for name, p in fast.named_parameters():
            p.zero_()
            if name == "bias_ih_l0":  # i and f are 1, g is 2^-9
                p.copy_(torch.tensor([20.0, 20.0, 2.0**-9, 0.0]))
        with torch.autocast(device.type, dtype):
            _, (_, c_n) = fast(torch.zeros(steps, 1, 1, device=device))
    torch.testing.assert_close(c_n.item(), steps * 2.0**-9, rtol=torch.finfo(dtype).eps, atol=0)
