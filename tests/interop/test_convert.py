"""convert: in place, same objects and parameters; and what it leaves alone, by name. Weights of
others: from_torch, from_keras (beside Keras itself: test_oracles.py)."""

import copy
import warnings

import pytest
import torch
from pairs import one_thread  # noqa: F401  (a fixture)
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from fastlstm import FastLSTM, FastLSTMCell, convert, from_keras
from fastlstm.interop.convert import Converted

X = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(3, 5, 2, bidirectional=True, dropout=0.5)
        self.again = self.encoder  # the same module under two names
        self.layers = nn.ModuleList([nn.LSTM(10, 4, bias=False), nn.GRU(4, 4)])
        self.cell = nn.LSTMCell(4, 4)

    def forward(self, x):
        y = self.layers[0](self.encoder(x)[0])[0]
        return self.cell(self.layers[1](y)[0][-1])[0]


class Special(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(input, hx)


@pytest.mark.parametrize("training", [True, False])
def test_results_parameters_and_flags_are_kept(training):
    model = Tagger().train(training)
    model.encoder.weight_hh_l0.requires_grad_(False)
    parameters, state = list(model.parameters()), list(model.state_dict())
    torch.manual_seed(0)
    before = model(X)
    drawn = torch.get_rng_state()
    assert convert(model) is model
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.manual_seed(0)
    torch.testing.assert_close(model(X), before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == state
    assert [m.training for m in model.modules()] == [training] * len(list(model.modules()))
    assert type(model.encoder) is type(model.layers[0]) is FastLSTM
    assert type(model.cell) is FastLSTMCell
    assert type(model.layers[1]) is nn.GRU
    assert model.again is model.encoder


def test_an_optimizer_made_before_still_trains():
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model)
    before = model.encoder.weight_hh_l0.clone()
    model(X).sum().backward()
    optimizer.step()
    assert not torch.equal(model.encoder.weight_hh_l0, before)


def test_the_model_itself_may_be_an_lstm():
    lstm = nn.LSTM(3, 5)
    before = lstm(X)
    assert type(convert(lstm, backend="reference")) is FastLSTM
    assert lstm.backend == "reference"
    torch.testing.assert_close(lstm(X), before)


def test_a_copy_is_converted_by_itself():
    model = Tagger()
    convert(copy.deepcopy(model))
    assert type(model.encoder) is nn.LSTM


def test_hooks_are_kept():
    model, seen = Tagger(), []
    model.encoder.register_forward_hook(lambda module, args, out: seen.append(module))
    convert(model)(X)
    assert seen == [model.encoder]


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrized(wrap):
    model = nn.Sequential(nn.LSTM(3, 5))
    wrap(model[0], "weight_hh_l0")
    twin = copy.deepcopy(model)
    before, state = model(X), list(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model)
    assert isinstance(model[0], FastLSTM)
    assert not isinstance(twin[0], FastLSTM)
    assert parametrize.type_before_parametrizations(model[0]) is FastLSTM
    assert list(model.state_dict()) == state
    torch.testing.assert_close(model(X), before)
    torch.testing.assert_close(copy.deepcopy(model)(X), before)
    parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    assert type(model[0]) is FastLSTM
    torch.testing.assert_close(model(X), before)


def test_pruned():
    model = nn.Sequential(nn.LSTM(3, 5))
    prune.random_unstructured(model[0], "weight_hh_l0", amount=0.5)
    before = model(X)
    torch.testing.assert_close(convert(model)(X), before)
    prune.remove(model[0], "weight_hh_l0")
    torch.testing.assert_close(model(X), before)


def patched():
    lstm = nn.LSTM(3, 5)
    lstm.forward = lambda input, hx=None: nn.LSTM.forward(lstm, input, hx)
    return lstm


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.LSTM(3, 5))


@pytest.mark.parametrize(
    "make, kind, words",
    [
        (lambda: Special(3, 5), "Special", "a subclass of nn.LSTM with behaviour of its own"),
        (patched, "LSTM", "its forward was replaced on the instance"),
        (scripted, "LSTM", "it is compiled to TorchScript"),
    ],
    ids=["subclass", "patched", "scripted"],
)
def test_what_is_left_alone_is_named(make, kind, words):
    model = nn.ModuleDict({"a": nn.LSTM(3, 5), "b": make()})
    with pytest.warns(UserWarning, match=f"b, a {kind}: {words}"):
        convert(model)
    assert type(model["a"]) is FastLSTM
    assert not isinstance(model["b"], FastLSTM)


def test_report_takes_the_place_of_the_warning():
    model = nn.ModuleList([nn.LSTM(3, 5), Special(3, 5), FastLSTM(3, 5), nn.Linear(2, 2)])
    report = []
    convert(model, report=report)
    assert report[0] == Converted("0", "LSTM", None)
    assert report[1][:2] == ("1", "Special")
    assert report[2] == Converted("2", "FastLSTM", "already a FastLSTM")
    assert len(report) == 3


def test_twice_is_once():
    model = convert(Tagger(), backend="reference")
    assert convert(model) is model
    assert model.encoder.backend == "reference"


def test_bad_arguments():
    with pytest.raises(TypeError, match="model: got Tensor, expected a torch"):
        convert(X)
    with pytest.raises(ValueError, match="backend: got 'fast'"):
        convert(nn.LSTM(3, 5), backend="fast")
    with pytest.raises(TypeError):
        convert(nn.LSTM(3, 5), fast=True)


# from_torch and to_torch: copies, in place of the same objects


OPTIONS = {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "there, back, cls, options",
    [
        (FastLSTM.from_torch, FastLSTM.to_torch, nn.LSTM, {**OPTIONS, "dropout": 0.25}),
        (FastLSTM.from_torch, FastLSTM.to_torch, nn.LSTM, {"bias": False}),
        (FastLSTMCell.from_torch, FastLSTMCell.to_torch, nn.LSTMCell, {}),
        (FastLSTMCell.from_torch, FastLSTMCell.to_torch, nn.LSTMCell, {"bias": False}),
    ],
    ids=["lstm", "nobias", "cell", "cell-nobias"],
)
def test_from_torch_and_back(there, back, cls, options, dtype):
    source = cls(3, 5, dtype=dtype, **options).eval()
    next(source.parameters()).requires_grad_(False)
    drawn = torch.get_rng_state()
    fast = there(source, backend="reference")
    twin = back(fast)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert fast.backend == "reference"
    assert type(twin) is cls
    for module in (fast, twin):
        assert str(module).split("(", 1)[1].startswith(str(source).split("(", 1)[1][:-1])
        assert not module.training
        for a, b in zip(module.parameters(), source.parameters(), strict=True):
            assert torch.equal(a, b)
            assert (a.dtype, a.device, a.requires_grad) == (b.dtype, b.device, b.requires_grad)
            assert a.data_ptr() != b.data_ptr()
        assert list(module.state_dict()) == list(source.state_dict())


def test_from_torch_takes_the_weights_that_count():
    lstm = nn.LSTM(3, 5)
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    fast = FastLSTM.from_torch(lstm)
    torch.testing.assert_close(fast(X), lstm(X))
    assert list(fast.state_dict()) == list(nn.LSTM(3, 5).state_dict())


def test_from_torch_on_meta():
    fast = FastLSTM.from_torch(nn.LSTM(3, 5, device="meta"))
    assert fast.weight_hh_l0.device.type == "meta"


def test_from_torch_warns_of_nothing_said_before():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lstm = nn.LSTM(3, 5, dropout=0.5)
    assert FastLSTM.from_torch(lstm).dropout == 0.5


def test_from_torch_refuses_others():
    with pytest.raises(TypeError, match="lstm: got GRU, expected a torch"):
        FastLSTM.from_torch(nn.GRU(3, 5))
    with pytest.raises(TypeError, match="cell: got LSTM, expected a torch"):
        FastLSTMCell.from_torch(nn.LSTM(3, 5))
    with pytest.raises(TypeError):
        FastLSTM.from_torch(nn.LSTM(3, 5), lay_norm=True)


def keras_weights(I, H, bias=True):
    """kernel, recurrent_kernel and bias as Keras gives them."""
    shapes = [(I, 4 * H), (H, 4 * H), (4 * H,)]
    return [torch.randn(shape).numpy() for shape in shapes[: 3 if bias else 2]]


@pytest.mark.parametrize("bias", [True, False])
def test_from_keras_puts_each_array_where_it_belongs(bias):
    kinds = [keras_weights(I, 5, bias) for I in (3, 3, 10, 10)]
    flat = [w for kind in kinds for w in kind]
    fast = from_keras(*flat, bidirectional=True, backend="reference", dtype=torch.float64)
    assert (fast.num_layers, fast.batch_first, fast.bias) == (2, True, bias)
    assert (fast.backend, fast.weight_hh_l0.dtype) == ("reference", torch.float64)
    for weights, suffix in zip(kinds, ("_l0", "_l0_reverse", "_l1", "_l1_reverse"), strict=True):
        for name, value in zip(("weight_ih", "weight_hh", "bias_ih"), weights, strict=False):
            expected = torch.from_numpy(value.T).double()
            torch.testing.assert_close(getattr(fast, name + suffix).detach(), expected)
    assert not bias or not fast.bias_hh_l1_reverse.any()
    flat[0][:] = 0  # copies
    assert fast.weight_ih_l0.all()


def test_from_keras_names_what_does_not_fit():
    kernel, recurrent, bias = keras_weights(3, 5)
    for weights, options, words in [
        ([], {}, r"got 0 arrays, expected kernel, recurrent_kernel of each layer"),
        ([kernel, recurrent, bias, kernel], {}, r"got 4 arrays, expected kernel.*, bias of each"),
        ([kernel, recurrent, bias], {"bidirectional": True}, "forward before backward"),
        ([recurrent, kernel], {}, r"weights\[0\]: got shape \(5, 20\), expected \(5, 12\)"),
        (
            [kernel, recurrent, bias, recurrent, kernel, bias],
            {},
            r"weights\[4\].* \(5, 20\), the recurrent",
        ),
        (
            [kernel, recurrent, 1.0],
            {},
            r"weights\[2\]: got shape \(1,\), expected \(20,\), the bias",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            from_keras(*weights, **options)
