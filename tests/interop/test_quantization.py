"""Where people come from: torch.ao.quantization's dynamic LSTMs, models of them, and `convert` to
int8."""

import warnings

import pytest
import torch
from pairs import one_thread  # noqa: F401  (a fixture)
from torch import nn

import fastlstm
from fastlstm import FastLSTM, FastLSTMCell, int8
from fastlstm.interop import quantization

INT8 = torch.int8
X = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, lstm=nn.LSTM, **options):
        super().__init__()
        self.lstm = lstm(6, 8, 2, bidirectional=True, **options)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def quantised(model, types, **options):
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.(quantize_per_tensor|ao.quantization).*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return quantize_dynamic(model, types, **options)


@torch.no_grad()
def test_quantize_dynamic_makes_int8_of_a_fast_lstm():
    model = Model(FastLSTM).eval()
    calls = []
    model.lstm.register_forward_hook(lambda *_: calls.append(1))
    found = quantised(model, {nn.LSTM})
    assert type(found.lstm) is FastLSTM and found.lstm.weight_dtype == INT8
    expected = FastLSTM.from_torch(model.lstm, weight_dtype=INT8)
    torch.testing.assert_close(found.lstm(X), expected(X), rtol=0, atol=0)
    assert len(calls) == 1  # the hook has come along
    assert model.lstm.weight_dtype is None
    projected = quantised(nn.Sequential(FastLSTM(6, 8, proj_size=3)), {nn.LSTM})
    assert projected[0].weight_dtype == INT8 and projected[0].proj_size == 3
    variant = quantised(nn.Sequential(FastLSTM(6, 8, zoneout=0.1)), {nn.LSTM})
    assert variant[0].zoneout == (0.1, 0.1) and variant[0].weight_dtype == INT8


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*torch.(quantize|per).*")
@pytest.mark.parametrize("per_channel", [False, True])
def test_convert_takes_torchs_quantised_lstms(per_channel):
    from torch.ao import quantization as ao

    model = Model().eval()
    config = {nn.LSTM: ao.per_channel_dynamic_qconfig} if per_channel else {nn.LSTM}
    try:
        theirs = quantised(model, config)
        before = theirs(X)
    except RuntimeError as error:
        pytest.skip(f"this torch does not quantise so: {error}")
    weights = theirs.lstm.get_weight()
    theirs.again = given = theirs.lstm
    calls = []
    theirs.lstm.register_forward_hook(lambda *_: calls.append(1))
    report = []
    assert fastlstm.convert(theirs, report=report) is theirs
    assert [(c.name, c.kind, c.reason) for c in report] == [("lstm", "quantised LSTM", None)]
    assert theirs.lstm is given is theirs.again  # the same object, also where it is used twice
    assert type(given) is FastLSTM and given.weight_dtype == INT8 and not given.training
    state = given.state_dict()
    for name, weight in weights.items():
        assert torch.equal(state[name], weight.int_repr().clamp(min=-127))
        step = state[f"{name}_scale"][:, None]
        widened = state[name].float() * step
        assert ((widened - weight.dequantize()).abs() <= step * 1.0001).all()
    error, own = ((m(X) - model(X)).abs().max() for m in (theirs, lambda _: before))
    assert calls and error <= 2 * own
    assert not list(given.children())


@torch.no_grad()
def test_convert_takes_torchs_quantised_cells():
    cell, x = nn.LSTMCell(6, 8), X[0]
    model = quantised(nn.Sequential(cell), {nn.LSTMCell})
    before = model(x)
    fastlstm.convert(model)
    assert type(model[0]) is FastLSTMCell and model[0].weight_dtype == INT8
    error, own = ((h[0] - cell(x)[0]).abs().max() for h in (model(x), before))
    assert error <= 2 * own
    alone = quantised(nn.Sequential(nn.LSTM(6, 8)), {nn.LSTM})[0]
    assert fastlstm.convert(alone) is alone and type(alone) is FastLSTM


def test_what_convert_leaves():
    model = quantised(nn.Sequential(nn.LSTM(6, 8)), {nn.LSTM}, dtype=torch.float16)
    with pytest.warns(UserWarning, match=r"0, a quantised LSTM: its weights are torch\.float16"):
        fastlstm.convert(model)
    assert type(model[0]) is torch.ao.nn.quantized.dynamic.LSTM
    gru = quantised(nn.Sequential(nn.GRU(6, 8)), {nn.GRU})
    fastlstm.convert(gru)
    assert type(gru[0]) is torch.ao.nn.quantized.dynamic.GRU


@torch.no_grad()
def test_convert_to_int8():
    model = fastlstm.convert(Model(), weight_dtype=INT8, weight_only=True)
    assert model.lstm.weight_dtype == INT8 and model.lstm.weight_only
    assert not model.lstm._parameters and model.head.weight.dtype == torch.float32
    # What is a FastLSTM already takes the dtype too, where one is asked for.
    fastlstm.convert(model)
    assert model.lstm.weight_dtype == INT8 and model.lstm.weight_only
    fastlstm.convert(model, weight_dtype=INT8)
    assert not model.lstm.weight_only
    fastlstm.convert(model, weight_dtype=torch.bfloat16)
    assert model.lstm.weight_hh_l1.dtype == torch.bfloat16
    theirs = quantised(Model().eval(), {nn.LSTM})
    fastlstm.convert(theirs, weight_dtype=torch.bfloat16)
    assert theirs.lstm.weight_hh_l1.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"weight_only: it needs weight_dtype=torch\.int8"):
        fastlstm.convert(Model(), weight_only=True)


@torch.no_grad()
def test_convert_refuses_before_anything_changes():
    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": nn.LSTM(3, 4)})
    model["b"].weight_hh_l0[3, 1] = torch.inf
    with pytest.raises(ValueError, match=r"b\.weight_hh_l0: row 3 has NaN or infinity"):
        fastlstm.convert(model, weight_dtype=INT8)
    assert type(model["a"]) is type(model["b"]) is nn.LSTM


def test_zero_points_are_quantised_again():
    weight = torch.rand(8, 5) + 1
    moved = torch.quantize_per_tensor(weight, 1 / 127, -100, torch.qint8)
    q, scale = quantization._rows(moved)
    expected = int8.quantise_rows(moved.dequantize())
    assert torch.equal(q, expected[0]) and torch.equal(scale, expected[1])


def test_torchao_filter():
    """The recipe in docs/int8.md: torchao for the rest of a model, `convert` for its LSTMs."""
    torchao = pytest.importorskip("torchao.quantization")
    model = Model().eval()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=lambda m, _: isinstance(m, nn.Linear))
    fastlstm.convert(model, weight_dtype=INT8)
    with torch.no_grad():
        assert model(X).shape == (5, 3, 3)
