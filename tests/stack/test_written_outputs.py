"""Outputs that the caller writes into before the backward, which has what it needs elsewhere."""

import shutil

import pytest
import torch
from pairs import needs_library, pair
from torch.nn.utils.rnn import pack_padded_sequence

from fastlstm import FastLSTM
from fastlstm.stack.wavefront import plan as wavefront

T, N, I, H = 5, 3, 4, 6
BACKENDS = [pytest.param("auto", marks=needs_library), "reference"]
WRITES = {
    "add": lambda y: y.add_(torch.ones_like(y)),
    "relu": lambda y: y.relu_(),
    "first": lambda y: y[0].zero_(),
    "view": lambda y: y.transpose(0, -1)[1:].mul_(3),
    "detached": lambda y: y.detach().copy_(torch.full_like(y, 7)),
}
OPTIONS = {
    "plain": {},
    "layers": {"num_layers": 3, "dropout": 0.5},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "projection": {"proj_size": 2, "batch_first": True},
    "layer_norm": {"layer_norm": True},
    "variants": {"zoneout": 0.3, "recurrent_dropout": 0.3, "proj_size": 2, "bidirectional": True},
    "checkpoints": {"checkpoint_every": 2, "num_layers": 2},
    "dropout and checkpoints": {"checkpoint_every": 2, "num_layers": 2, "dropout": 0.5},
}
CALLS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([5, 0, 3])},
    "resets": {"reset_mask": torch.arange(T * N).view(T, N) % 4 == 0},
    "cells": {"return_cell_sequence": True},
}
BITWISE = {"rtol": 0, "atol": 0}
backends = pytest.mark.parametrize("backend", BACKENDS)
writes = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


def drawn(module, dtype=torch.float64, rows=(N,)):
    batch_first = module.batch_first and rows
    return torch.randn(*((*rows, T) if batch_first else (T, *rows)), I, dtype=dtype)


def sequences(results):
    """output, and cells where asked for."""
    return results[0], *results[2:]


def gradients(call, inputs, write, copied: bool):
    """What `call` gives, written into, and gradients of it; `copied`: into a copy."""
    torch.manual_seed(5)
    results = call()
    output, *cells = sequences(results)
    loss = sum(s.cos().sum() for s in results[1])
    for sequence in (output, *cells):
        value = sequence.clone() if copied else sequence
        write(value)
        loss = loss + value.sin().sum()
    return loss, *torch.autograd.grad(loss, inputs)


def check(call, inputs, write):
    got, expected = (gradients(call, inputs, write, copied) for copied in (False, True))
    torch.testing.assert_close(got, expected, **BITWISE)


@backends
@writes
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("masks", CALLS.values(), ids=CALLS)
def test_the_backward_does_not_see_it(masks, options, write, backend):
    module = FastLSTM(I, H, dtype=torch.float64, backend=backend, **options)
    x = drawn(module).requires_grad_()
    if module.batch_first and "reset_mask" in masks:
        masks = {"reset_mask": masks["reset_mask"].t()}
    check(lambda: module(x, **masks), [x, *module.parameters()], write)


@writes
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_as_nn_lstm_takes_it(options, write):
    lstm, fast = pair(I, H, dtype=torch.float64, **options)
    x, found = drawn(fast), []
    for module in (lstm, fast):
        leaf = x.clone().requires_grad_()
        inputs = [leaf, *module.parameters()]
        found.append(gradients(lambda m=module, v=leaf: m(v), inputs, write, False))
    torch.testing.assert_close(*found)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masks", [CALLS["plain"], CALLS["cells"]], ids=["plain", "cells"])
def test_every_dtype(masks, dtype, backend):
    module = FastLSTM(I, H, 2, dtype=dtype, backend=backend)
    x = drawn(module, dtype)
    check(lambda: module(x, **masks), list(module.parameters()), WRITES["add"])


@backends
@writes
def test_other_forms_of_input(write, backend):
    module = FastLSTM(I, H, dtype=torch.float64, backend=backend)
    inputs = list(module.parameters())
    unbatched, one = drawn(module, rows=()), drawn(module)[0]
    check(lambda: module(unbatched), inputs, write)
    for lengths in ([5, 5, 5], [5, 3, 1]):
        packed = pack_padded_sequence(drawn(module), torch.tensor(lengths))
        check(lambda p=packed: (module(p)[0].data, module(p)[1]), inputs, write)
    check(lambda: module.step(one), inputs, write)


@writes
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_layers_as_a_wavefront(dropout, write, monkeypatch):
    monkeypatch.setenv(wavefront.VARIABLE, "1")
    monkeypatch.setattr(wavefront, "best_chunk", lambda T, L, step, host: 2)
    module = FastLSTM(I, H, 3, dropout=dropout, dtype=torch.float64, backend="reference")
    x = drawn(module).requires_grad_()
    for masks in ({}, CALLS["cells"]):
        check(lambda m=masks: module(x, **m), [x, *module.parameters()], write)


@backends
@pytest.mark.parametrize("write", [WRITES[k] for k in ("add", "view", "detached")])
@pytest.mark.parametrize("masks", [CALLS["plain"], CALLS["lengths"]], ids=["plain", "lengths"])
def test_second_derivatives(masks, write, backend):
    module = FastLSTM(I, H, 2, dtype=torch.float64, backend=backend)
    x, found = drawn(module).requires_grad_(), []
    wanted, factors = [x, *module.parameters()], torch.randn(T, N, H, dtype=torch.float64)
    for copied in (False, True):
        output, _ = module(x, **masks)
        value = output.clone() if copied else output
        write(value)
        first = torch.autograd.grad((value * factors).sum(), wanted, create_graph=True)
        write(value.detach())  # after the backward, before that of the backward
        again = sum(g.cos().sum() for g in first)
        found.append([*first, *torch.autograd.grad(again, wanted, materialize_grads=True)])
    torch.testing.assert_close(*found, **BITWISE)


@backends
@pytest.mark.parametrize("masks", [CALLS["plain"], CALLS["cells"]], ids=["plain", "cells"])
def test_under_transforms(masks, backend):
    module = FastLSTM(I, H, dtype=torch.float64, backend=backend)
    x = drawn(module)

    def loss(x, copied):
        results = module(x, **masks)
        values = [y.clone() if copied else y for y in sequences(results)]
        return sum(y.add_(y.detach()).relu_().sin().sum() for y in values)

    for derive in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        got, expected = (derive(lambda v, c=copied: loss(v, c))(x) for copied in (False, True))
        torch.testing.assert_close(got, expected)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@needs_library
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}], ids=["plain", "layer_norm"])
def test_inductor_leaves_the_copy(options, fresh_compiler):
    """It takes a clone out that nothing in the graph needs."""
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler for inductor")
    module = FastLSTM(I, H, dtype=torch.float64, **options)
    x, compiled = drawn(module), torch.compile(module)
    check(lambda: compiled(x), list(module.parameters()), WRITES["add"])


@backends
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"num_layers": 2}])
def test_compiled(options, backend, fresh_compiler):
    """Written into by the compiled program, and by what runs after it."""
    module = FastLSTM(I, H, dtype=torch.float64, backend=backend, **options)
    x, inputs = drawn(module), list(module.parameters())

    def program(x):
        output, states = module(x)
        output += 1
        return output.mul_(2), states

    for function in (module, program):
        compiled = torch.compile(function, backend="aot_eager")
        check(lambda f=compiled: f(x), inputs, WRITES["add"])
        got = gradients(lambda f=compiled: f(x), inputs, WRITES["relu"], False)
        expected = gradients(lambda f=function: f(x), inputs, WRITES["relu"], True)
        torch.testing.assert_close(got, expected)


@backends
def test_an_input_written_into_is_refused(backend):
    """x is the caller's, and the tape's: torch says so, as for nn.LSTM."""
    module = FastLSTM(I, H, backend=backend)
    x = drawn(module, torch.float32)
    output, _ = module(x)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
