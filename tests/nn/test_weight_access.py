"""Weights are what getattr gives, as in nn.LSTM, whoever computes them, and are asked for once a
call; in the plain case without the cost of nn.Module.__getattr__."""

import sys

import pytest
import torch
from pairs import ignore_onednn, one_thread, pair  # noqa: F401  (one_thread is a fixture)
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.rnn import pack_sequence

from fastlstm import FastLSTM, FastLSTMCell

pytestmark = ignore_onednn

X = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
WEIGHTS = "weight_hh_l0", "weight_hh"


class ByGetattr:
    """Looks weights up as it likes, as Pyro's modules do."""

    def __getattr__(self, name):
        value = super().__getattr__(name)
        return 2 * value if name in WEIGHTS else value


class ByGetattribute:
    def __getattribute__(self, name):
        if name in WEIGHTS:
            return 2 * super().__getattribute__("_parameters")[name]
        return super().__getattribute__(name)


class ByProperty:
    weight_hh_l0 = property(lambda self: 2 * self._parameters["weight_hh_l0"])
    weight_hh = property(lambda self: 2 * self._parameters["weight_hh"])


WAYS = [ByGetattr, ByGetattribute, ByProperty]


def both(way, fast, torch_class):
    """The module with the recurrent weights doubled by its class, and nn's with doubled weights."""
    plain = fast.to_torch()
    with torch.no_grad():
        getattr(plain, "weight_hh_l0" if torch_class is nn.LSTM else "weight_hh").mul_(2)
    fast.__class__ = type(f"{way.__name__}LSTM", (way, type(fast)), {})
    return fast, plain


def calls():
    packed = pack_sequence([X[:, 0], X[:2, 1]])
    return {
        "plain": lambda m: m(X)[0],
        "one step": lambda m: m(X[:1])[0],
        "unbatched": lambda m: m(X[:, 0])[0],
        "packed": lambda m: m(packed)[0].data,
        "lengths": lambda m: m(X, **({"lengths": torch.tensor([4, 4])} if fast(m) else {}))[0],
        "step": lambda m: m.step(X[0])[0] if fast(m) else m(X[:1])[0][0],
    }


def fast(module):
    return isinstance(module, FastLSTM)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("call", calls())
@pytest.mark.parametrize("way", WAYS)
def test_who_looks_attributes_up_otherwise_is_asked(way, call, backend):
    ours, plain = both(way, FastLSTM(3, 5, backend=backend), nn.LSTM)
    run = calls()[call]
    torch.testing.assert_close(run(ours), run(plain))
    with torch.no_grad():
        torch.testing.assert_close(run(ours), run(plain))
    weight = ours._parameters["weight_hh_l0"]
    if call in ("plain", "packed"):
        (got,) = torch.autograd.grad(run(ours).sum(), weight)
        (wanted,) = torch.autograd.grad(run(plain).sum(), plain.weight_hh_l0)
        torch.testing.assert_close(got, 2 * wanted)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("way", WAYS)
def test_who_looks_attributes_of_a_cell_up_otherwise_is_asked(way, backend):
    ours, plain = both(way, FastLSTMCell(3, 5, backend=backend), nn.LSTMCell)
    hx = torch.randn(2, 5), torch.randn(2, 5)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(ours(X[0], hx), plain(X[0], hx))


class Counted(nn.Module):
    count = 0

    def forward(self, weight):
        self.count += 1
        return weight * 2


@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 2}, {"dropout": 0.5}])
@pytest.mark.parametrize("call", calls())
@pytest.mark.parametrize("grad", [True, False])
def test_a_parametrization_is_evaluated_once_a_call(grad, call, options):
    module = FastLSTM(3, 5, 2, **options)
    parametrize.register_parametrization(module, "weight_hh_l1", Counted())
    counted = module.parametrizations.weight_hh_l1[0]
    counted.count = 0
    with torch.set_grad_enabled(grad):
        calls()[call](module)
    assert counted.count == 1


@pytest.mark.parametrize("grad", [True, False])
def test_a_cells_parametrization_is_evaluated_once_a_call(grad):
    cell = FastLSTMCell(3, 5)
    parametrize.register_parametrization(cell, "weight_hh", Counted())
    counted = cell.parametrizations.weight_hh[0]
    counted.count = 0
    with torch.set_grad_enabled(grad):
        cell(X[0])
    assert counted.count == 1


def calls_of_getattr(call):
    """The names that `call` looks up by nn.Module.__getattr__."""
    code, names = nn.Module.__getattr__.__code__, []

    def note(frame, event, argument):
        if event == "call" and frame.f_code is code:
            names.append(frame.f_locals["name"])

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


@pytest.mark.parametrize("subclass", [False, True])
@pytest.mark.parametrize("grad", [True, False])
def test_the_plain_case_does_without_getattr(grad, subclass):
    module, cell = FastLSTM(3, 5, 2), FastLSTMCell(3, 5, bias=False)
    if subclass:
        module.__class__ = type("Own", (FastLSTM,), {})
        cell.__class__ = type("Own", (FastLSTMCell,), {})
    with torch.set_grad_enabled(grad):
        for call in (lambda: module(X), lambda: module(X[:1]), lambda: module.step(X[0])):
            assert calls_of_getattr(call) == []
        assert calls_of_getattr(lambda: cell(X[0])) == []
        prune.random_unstructured(module, "weight_hh_l0", 0.5)
        assert "weight_ih_l0" in calls_of_getattr(lambda: module(X))


@pytest.mark.filterwarnings("ignore")
def test_pyro():
    pyro = pytest.importorskip("pyro")
    from pyro.nn import PyroModule, PyroSample

    lstm, fast = pair(3, 5)
    module = PyroModule[FastLSTM](3, 5)
    module.load_state_dict(lstm.state_dict())
    pyro.clear_param_store()
    torch.testing.assert_close(module(X), lstm(X))
    assert set(pyro.get_param_store().keys()) == {name for name, _ in lstm.named_parameters()}
    optimizer = pyro.optim.SGD({"lr": 0.1})
    output, _ = module(X)
    output.sum().backward()
    before = lstm.weight_hh_l0.detach().clone()
    optimizer(pyro.get_param_store().values())
    assert not torch.equal(module(X)[0], output)
    assert not torch.equal(pyro.param("weight_hh_l0"), before)
    # A weight that is drawn: the draw is what the call computes with.
    normal = pyro.distributions.Normal(torch.zeros(20, 5), torch.ones(20, 5)).to_event(2)
    module.weight_hh_l0 = PyroSample(normal)
    trace = pyro.poutine.trace(module).get_trace(X)
    with torch.no_grad():
        for name, value in module.named_parameters():
            getattr(fast, name).copy_(value)
        fast.weight_hh_l0.copy_(trace.nodes["weight_hh_l0"]["value"])
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], fast(X))
