"""batch_first_states, variational_dropout and return_layer_outputs beyond what feature_grid.py
combines: as attributes, from function to module, in other tools."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from pairs import on_cpu, one_thread, pair  # noqa: F401  (one_thread is a fixture)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import FastLSTM, functional
from fastlstm.testing import make_input, make_states

pytestmark = pytest.mark.usefixtures("poisoned_empty")
backends = pytest.mark.parametrize("backend", [on_cpu, "reference"])
T, N, I, H, P = 5, 4, 3, 6, 2
OPTIONS = {"variational_dropout": True, "batch_first_states": True, "return_layer_outputs": True}
each = pytest.mark.parametrize("name", OPTIONS)


def double(backend="auto", **options):
    return FastLSTM(I, H, 3, backend=backend, dtype=torch.float64, **options)


def swapped(states):
    return tuple(s.transpose(0, 1) for s in states)


@backends
def test_states_with_the_batch_first_are_the_others_swapped(backend):
    fast = double(backend, proj_size=P)
    other = copy.deepcopy(fast)
    other.batch_first_states = True
    x, hx = make_input(T, N, I, torch.float64), make_states(fast, N, torch.float64)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y, states = fast(x, hx)
            found, found_states = other(x, swapped(hx))
            assert found_states[0].shape == (N, 3, P)
            assert torch.equal(found, y)
            assert all(map(torch.equal, found_states, swapped(states)))
            for rows in (N, 20):  # the op of a step, and the general way
                x_t = torch.randn(rows, I, dtype=torch.float64)
                hx_t = make_states(fast, rows, torch.float64)
                y, states = fast.step(x_t, hx_t)
                found, found_states = other.step(x_t, swapped(hx_t))
                assert torch.equal(found, y)
                assert all(map(torch.equal, found_states, swapped(states)))
            assert other.step(x_t)[1][1].shape == (20, 3, H)
    alone = make_input(T, None, I, torch.float64, kind="unbatched")
    hx = make_states(fast, None, torch.float64)
    torch.testing.assert_close(other(alone, hx), fast(alone, hx), rtol=0, atol=0)
    torch.testing.assert_close(other.step(alone[0], hx), fast.step(alone[0], hx), rtol=0, atol=0)


def test_states_that_do_not_fit_are_named():
    fast = FastLSTM(I, H, 3, batch_first_states=True)
    x, wrong = torch.zeros(T, N, I), (torch.zeros(3, N, H), torch.zeros(3, N, H))
    says = r"hx\[0\] \(h0\): got shape \(3, 4, 6\), expected \(4, 3, 6\), \(N, L\*D, P\) for batch_"
    with pytest.raises(ValueError, match=says):
        fast(x, wrong)
    with pytest.raises(ValueError, match=says):
        fast.step(x[0], wrong)
    weights = [tuple(w) for w in fast.all_weights]
    with pytest.raises(ValueError, match=says):
        functional.lstm(x, weights, wrong, batch_first_states=True)
    with pytest.raises(ValueError, match="hx: got"):
        fast(x, 3)


class Replicated(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = FastLSTM(I, H, 2, batch_first=True, batch_first_states=True)

    def forward(self, x, h0, c0):
        return self.lstm(x, (h0, c0))


def test_states_are_split_with_the_rows():
    """As nn.DataParallel scatters and gathers, by their first dimension."""
    model = Replicated()
    given = torch.randn(6, T, I), torch.randn(6, 2, H), torch.randn(6, 2, H)
    parts = [model(*(g[k : k + 3] for g in given)) for k in (0, 3)]
    whole = model(*given)
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), whole[0])
    for k in range(2):
        torch.testing.assert_close(torch.cat([p[1][k] for p in parts]), whole[1][k])


@backends
@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_one_mask_for_all_steps(backend, checkpoint_every):
    """The masks, by a stack whose second layer gives what it is given."""
    options = {"dropout": 0.4, "variational_dropout": True, "checkpoint_every": checkpoint_every}
    fast = double(backend, **options)
    x = make_input(T, N, I, torch.float64)
    layers = [nn.LSTM(k, H, dtype=torch.float64) for k in (I, H, H)]
    for k, layer in enumerate(layers):
        names = layer._flat_weights_names
        layer.load_state_dict({n: getattr(fast, n.replace("l0", f"l{k}")) for n in names})
    torch.manual_seed(5)
    y, _ = fast(x)
    torch.manual_seed(5)
    expected = x
    for k, layer in enumerate(layers):
        if k:
            expected = expected * F.dropout(torch.ones(N, H, dtype=torch.float64), 0.4)
        expected, _ = layer(expected)
    torch.testing.assert_close(y, expected)
    assert torch.equal(fast.eval()(x)[0], fast(x)[0])


def test_one_seed_gives_each_row_its_mask_in_any_form():
    fast = double(dropout=0.5, variational_dropout=True, bidirectional=True)
    x, lengths = make_input(T, N, I, torch.float64), torch.tensor([2, 5, 1, 4])
    found = []
    for form in ("lengths", "packed", "nested"):
        torch.manual_seed(3)
        if form == "lengths":
            y = fast(x, lengths=lengths)[0]
        elif form == "packed":
            y = fast(pack_padded_sequence(x, lengths, enforce_sorted=False))[0]
            y = pad_packed_sequence(y, total_length=T)[0]
        else:
            rows = [x[:n, k] for k, n in enumerate(lengths.tolist())]
            y = fast(torch.nested.nested_tensor(rows, layout=torch.jagged))[0]
            y = torch.nested.to_padded_tensor(y, 0.0, (N, T, 2 * H)).transpose(0, 1)
        found.append((y, torch.rand(2)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)


@backends
@pytest.mark.parametrize("form", ["lengths", "packed", "unbatched", "batch_first", "stack"])
def test_outputs_of_all_layers(form, backend, monkeypatch):
    monkeypatch.setenv("FASTLSTM_WAVEFRONT", "1" if form == "stack" else "auto")
    first = form == "batch_first"
    fast = double(backend, return_layer_outputs=True, batch_first=first)
    plain = copy.deepcopy(fast)
    plain.return_layer_outputs = False
    kind = "unbatched" if form == "unbatched" else "batched"
    x = make_input(T, N, I, torch.float64, kind=kind, batch_first=first)
    options = {"lengths": torch.tensor([2, 5, 1, 4])} if form == "lengths" else {}
    if form == "packed":
        x = pack_padded_sequence(x, torch.tensor([2, 5, 1, 4]), enforce_sorted=False)
    y, states, outputs = fast(x, **options)
    assert outputs[-1] is y
    assert type(outputs) is tuple and len(outputs) == 3
    torch.testing.assert_close((y, states), plain(x, **options), rtol=1e-12, atol=1e-12)
    for k in (1, 2):
        shallow = FastLSTM(I, H, k, dtype=torch.float64, backend=backend, batch_first=first)
        shallow.load_state_dict(fast.state_dict(), strict=False)
        expected = shallow(x, **options)[0]
        assert type(outputs[k - 1]) is type(expected)
        torch.testing.assert_close(outputs[k - 1], expected, rtol=1e-12, atol=1e-12)
    results = fast(x, return_cell_sequence=True, **options)
    assert len(results) == 4 and results[3][-1] is results[0]
    single = FastLSTM(I, H, return_layer_outputs=True)
    y, _, outputs = single(torch.zeros(T, N, I))
    assert len(outputs) == 1 and outputs[0] is y


def test_outputs_come_before_dropout():
    fast = double(dropout=0.5, return_layer_outputs=True)
    x = make_input(T, N, I, torch.float64)
    *lower, _ = fast(x)[2]
    assert all(bool(y.all()) for y in lower)  # dropout would have put zeros there
    assert not any(y.requires_grad for y in fast.requires_grad_(False)(x)[2])


@pytest.mark.parametrize("training", [True, False])
def test_the_function_is_the_module(training):
    options = {"bidirectional": True, "dropout": 0.4, **OPTIONS}
    fast = FastLSTM(I, H, 2, dtype=torch.float64, **options).train(training)
    x, hx = make_input(T, N, I, torch.float64), swapped(make_states(fast, N, torch.float64))
    found = []
    for call in (
        lambda: fast(x, hx, return_cell_sequence=True),
        lambda: functional.lstm(
            x,
            [tuple(w) for w in fast.all_weights],
            hx,
            training=training,
            return_cell_sequence=True,
            **options,
        ),
    ):
        torch.manual_seed(1)
        found.append(call())
    torch.testing.assert_close(*found, rtol=0, atol=0)


@each
def test_settings_go_where_the_module_goes(name):
    fast = FastLSTM(I, H, 2, dropout=0.1, **{name: True})
    assert f"{name}=True" in repr(fast)
    assert name not in repr(FastLSTM(I, H))
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), FastLSTM.from_torch(fast)):
        assert getattr(other, name) is True
    plain = nn.LSTM(I, H, 2, dropout=0.1)
    plain.load_state_dict(fast.state_dict())
    assert getattr(FastLSTM.from_torch(plain, **{name: True}), name) is True
    assert getattr(FastLSTM.from_torch(fast, **{name: False}), name) is False
    assert getattr(fastlstm.convert(plain, **{name: True}), name) is True
    with pytest.raises(ValueError, match=f"to_torch: nn.LSTM cannot express {name}=True"):
        fast.to_torch()
    setattr(fast, name, False)
    assert type(fast.to_torch()) is nn.LSTM
    with pytest.raises(TypeError, match=f"{name}: got int, expected a bool"):
        setattr(fast, name, 1)


def test_old_pickles_load():
    fast = FastLSTM(I, H)
    state = {k: v for k, v in fast.__getstate__().items() if k not in OPTIONS}
    old = FastLSTM.__new__(FastLSTM)
    old.__setstate__(state)
    x = torch.zeros(T, N, I)
    torch.testing.assert_close(old(x), fast(x), rtol=0, atol=0)
    assert not any(getattr(old, name) for name in OPTIONS)


@pytest.mark.filterwarnings("ignore")
def test_traces_and_scripts():
    x, hx = torch.randn(T, N, I), swapped(make_states(FastLSTM(I, H, 2), N, torch.float32))
    fast = FastLSTM(I, H, 2, batch_first_states=True)
    traced = torch.jit.trace(fast, (x, hx), check_trace=False)
    torch.testing.assert_close(traced(x, hx), fast(x, hx))
    for options in ({"variational_dropout": True, "dropout": 0.1}, {"batch_first_states": True}):
        model = nn.Sequential(FastLSTM(I, H, 2, **options))
        with pytest.raises(ValueError, match=r"torch.jit.script: nn.LSTM cannot express"):
            torch.jit.script(model)
    with pytest.raises(ValueError, match=r"torch.jit.trace: nn.LSTM cannot express variational"):
        torch.jit.trace(FastLSTM(I, H, 2, variational_dropout=True, dropout=0.1), (x,))
    nodes = torch.fx.symbolic_trace(Replicated()).graph.nodes
    assert [str(n.target) for n in nodes if n.op == "call_module"] == ["lstm"]


class Everything(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.lstm = FastLSTM(I, H, 2, dropout=0.3, **OPTIONS, **options)

    def forward(self, x, h0, c0, lengths):
        return self.lstm(x, (h0, c0), lengths=lengths)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False])
def test_compiled_and_exported(training):
    model = Everything(bidirectional=True).train(training)
    hx = swapped(make_states(model.lstm, N, torch.float32))
    given = torch.randn(T, N, I), *hx, torch.tensor([2, 5, 1, 4])

    def seeded(function):
        torch.manual_seed(2)
        return function(*given)

    expected = seeded(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(seeded(compiled), expected)
    program = torch.export.export(model, given)
    torch.testing.assert_close(seeded(program.module()), expected)
