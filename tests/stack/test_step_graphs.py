"""Graphs of steps whose weights' gradients are made together: FastLSTMCell in a loop, beside
nn.LSTMCell.
"""

import gc
import threading
import weakref

import pytest
import torch
from cell_steps import Calls, cell_problem, gradients, outputs_of
from pairs import ignore_onednn, needs_library, one_thread  # noqa: F401  (a fixture)
from torch.utils.checkpoint import checkpoint

from fastlstm.stack import step_training

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_empty"), ignore_onednn]


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


def test_a_loop_makes_the_weights_gradients_once(calls):
    plain, fast, xs = cell_problem()
    states = [fast(xs[0])]
    for x in xs[1:]:
        states.append(fast(x, states[-1]))
    y = torch.stack([h for h, _ in states] + [states[-1][1]])
    weights = list(fast.parameters())
    first = torch.autograd.grad(y.sum(), weights, retain_graph=True)
    assert calls.taken() == (4, 4, 1)
    torch.testing.assert_close(torch.autograd.grad(outputs_of(plain, xs).sum(), plain.parameters()), first)
    # Again, of some of the steps, and of some of the weights.
    again = torch.autograd.grad(y.sum(), weights, retain_graph=True)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    torch.autograd.grad(states[1][0].sum(), weights, retain_graph=True)
    assert calls.taken() == (0, 6, 2)
    some = torch.autograd.grad(y.sum(), weights[1:2], retain_graph=True)
    torch.testing.assert_close(some, first[1:2], rtol=0, atol=0)


def test_what_nobody_asks_for_is_not_made(calls):
    _, fast, xs = cell_problem()
    xs.requires_grad_()
    y = outputs_of(fast, xs)
    torch.autograd.grad(y.sum(), xs)
    assert calls.taken() == (4, 4, 0)
    for p in fast.parameters():
        p.requires_grad_(False)
    outputs_of(fast, xs).sum().backward()
    assert calls.taken() == (4, 4, 0)
    fast.bias_hh.requires_grad_()
    outputs_of(fast, xs).sum().backward()
    assert calls.taken() == (4, 4, 1)
    assert fast.weight_ih.grad is None and fast.bias_hh.grad is not None


def test_graphs_on_the_same_weights_are_independent():
    plain, fast, xs = cell_problem(T=6)
    expected = [gradients(plain, part) for part in (xs[:2], xs[2:])]
    ys = [outputs_of(fast, part).square().sum() for part in (xs[:2], xs[2:])]
    for k in (1, 0):
        got = torch.autograd.grad(ys[k], list(fast.parameters()))
        torch.testing.assert_close(got, expected[k])
    # Truncated: each piece goes back before the next one begins.
    for cell in (plain, fast):
        state = None
        for part in (xs[:2], xs[2:4], xs[4:]):
            for x in part:
                state = cell(x, state)
            state[0].sum().backward()
            state = [s.detach() for s in state]
    for theirs, mine in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_a_backward_that_failed_leaves_nothing_behind():
    plain, fast, xs = cell_problem()
    fail = True

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dx):
            if fail:
                raise ArithmeticError
            return dx

    y = outputs_of(fast, [Failing.apply(xs[0].clone().requires_grad_()), *xs[1:]])
    weights = list(fast.parameters())
    with pytest.raises(ArithmeticError):
        y.square().sum().backward(retain_graph=True)
    fail = False
    got = torch.autograd.grad(y.square().sum(), weights)
    torch.testing.assert_close(got, gradients(plain, xs))


@pytest.mark.parametrize("name", ["weight_hh", "bias_hh"])
def test_computed_weights_may_be_computed_again_in_place(name, calls):
    """What a graph has computed, and a plain tensor that is computed from then on."""
    plain, fast, xs = cell_problem()
    found = []
    for cell in (plain, fast):
        scale = torch.tensor(1.5, requires_grad=True)
        given = cell.weight_hh * 1 if name == "weight_hh" else cell.bias_hh.detach().clone()
        kept = torch.func.functional_call(cell, {name: given}, (xs[0],))
        given.mul_(scale)
        hx = [s.detach() for s in kept]
        y = torch.func.functional_call(cell, {name: given}, (xs[1], hx))[0].sum()
        leaves = [p for n, p in cell.named_parameters() if n != "bias_hh"]
        found.append(torch.autograd.grad(y, [scale, *leaves]))
    torch.testing.assert_close(found[1], found[0])
    assert calls.taken() == (2, 1, 1)


def test_weights_may_change_in_any_way_between_steps():
    plain, fast, xs = cell_problem(T=2)
    found = []
    for cell in (plain, fast):
        state = cell(xs[0])
        y = state[0].sum()
        cell.weight_hh.data = cell.weight_hh.detach() * 2
        cell.bias_ih.data.mul_(3)
        y = y + cell(xs[1], tuple(s.detach() for s in state))[0].sum()
        found.append(torch.autograd.grad(y, list(cell.parameters()), retain_graph=True))
        cell.double()  # while the graph lives
        found[-1] += gradients(cell, xs.double())
    torch.testing.assert_close(found[1], found[0])


def test_nothing_is_kept_once_a_graph_is_gone(calls):
    _, fast, xs = cell_problem()
    gc.collect()
    before = len(step_training._nodes)
    y = outputs_of(fast, xs)
    assert len(step_training._nodes) == before + 1
    y.sum().backward()
    # Another loop while that one's graph lives has a node of its own, and so no older one.
    assert len(step_training._nodes) == before
    later = outputs_of(fast, xs)
    del y
    assert len(step_training._nodes) == before + 1
    later.sum().backward()
    assert calls.taken() == (8, 8, 2)
    del later
    assert len(step_training._nodes) == before
    weight, gone = weakref.ref(fast.weight_hh), outputs_of(fast, xs)
    del fast, gone
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    plain, fast, xs = cell_problem()
    found = []
    for cell in (plain, fast):
        x = xs.clone().requires_grad_()
        # A reentrant one goes back while the graph around it does, on the same weights.
        state = checkpoint(lambda a, c=cell: c(a), x[0], use_reentrant=reentrant)
        state = cell(x[1], state)
        y = checkpoint(lambda h, c, a, f=cell: f(a, (h, c))[0], *state, x[2], use_reentrant=reentrant)
        y.square().sum().backward()
        found.append([x.grad, *(p.grad for p in cell.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_beside_fully_shard_every_step_has_its_own(monkeypatch, calls):
    plain, fast, xs = cell_problem()
    monkeypatch.setattr(step_training, "_hooked", lambda: True)
    torch.testing.assert_close(gradients(fast, xs), gradients(plain, xs))
    assert calls.taken() == (4, 4, 4)


def test_hooks_of_weights_run_as_often_as_torchs():
    plain, fast, xs = cell_problem()
    seen = []
    for cell in (plain, fast):
        counts = [0, 0]

        def count(k, counts=counts):
            counts[k] += 1

        cell.weight_hh.register_hook(lambda g, count=count: count(0))
        cell.weight_hh.register_post_accumulate_grad_hook(lambda p, count=count: count(1))
        outputs_of(cell, xs).sum().backward()
        outputs_of(cell, xs).sum().backward()
        seen.append(counts)
    assert seen[0] == seen[1] == [2, 2]


def test_threads_of_python_share_a_module():
    _, fast, xs = cell_problem(T=8)
    expected, failed = gradients(fast, xs), []
    again = outputs_of(fast, xs).square().sum()

    def work():
        try:
            for _ in range(20):
                got = gradients(fast, xs)
                torch.testing.assert_close(got, expected, rtol=0, atol=0)
                got = torch.autograd.grad(again, list(fast.parameters()), retain_graph=True)
                torch.testing.assert_close(got, expected, rtol=0, atol=0)
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=work) for _ in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failed, failed[0]
