"""torch.nn.LSTM and LSTMCell replaced by the fast classes, as programs do for libraries that they
do not own; and classes that a library makes of their methods over another base."""

import copy
import pickle

import pytest
import test_cell
import test_contract_errors as contract
import torch
from pairs import ignore_onednn, one_thread  # noqa: F401  (one_thread is a fixture)
from torch import nn

import fastlstm
from fastlstm import FastLSTM, FastLSTMCell

pytestmark = [ignore_onednn, pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")]

LSTM, LSTMCell = nn.LSTM, nn.LSTMCell
X = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
BACKENDS = ["auto", "reference"]


@pytest.fixture
def replaced(monkeypatch):
    monkeypatch.setattr(nn, "LSTM", FastLSTM)
    monkeypatch.setattr(nn, "LSTMCell", FastLSTMCell)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", contract.ODD)
def test_what_does_not_fit_is_refused_in_the_same_words(case, backend, replaced):
    input, hx = contract.ODD[case]
    expected = contract.outcome(lambda: LSTM(3, 4)(input, hx))
    assert expected is not None
    assert contract.outcome(lambda: nn.LSTM(3, 4, backend=backend)(input, hx)) == expected


@pytest.mark.parametrize("case", contract.OWN)
def test_what_is_refused_in_other_words_still_is(case, replaced):
    input, hx, words = contract.OWN[case]
    with pytest.raises(ValueError) as error:
        nn.LSTM(3, 4)(input, hx)
    assert words in str(error.value)


@pytest.mark.parametrize("case", contract.CONSTRUCTORS)
def test_constructor(case, replaced):
    args, kwargs = contract.CONSTRUCTORS[case]
    expected = contract.outcome(lambda: LSTM(*args, **kwargs))
    assert contract.outcome(lambda: nn.LSTM(*args, **kwargs)) == expected


@pytest.mark.parametrize("case", test_cell.ODD)
def test_cell_refuses_or_takes_in_the_same_way(case, replaced):
    cell, fast = LSTMCell(test_cell.I, test_cell.H), nn.LSTMCell(test_cell.I, test_cell.H)
    fast.load_state_dict(cell.state_dict())
    expected = test_cell.outcome(lambda: cell(*test_cell.ODD[case]))
    found = test_cell.outcome(lambda: fast(*test_cell.ODD[case]))
    if isinstance(expected[0], torch.Tensor):
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


def test_the_way_back_is_torchs_own_class(replaced):
    fast, cell = nn.LSTM(3, 5, 2), nn.LSTMCell(3, 5)
    assert type(fast.to_torch()) is LSTM
    assert type(cell.to_torch()) is LSTMCell
    torch.testing.assert_close(fast.to_torch()(X), fast(X))
    assert type(FastLSTM.from_torch(LSTM(3, 5))) is FastLSTM
    with pytest.raises(TypeError, match="lstm: got GRU"):
        FastLSTM.from_torch(nn.GRU(3, 5))


def test_models_made_before_are_still_converted(replaced):
    model = nn.Sequential(LSTM(3, 5))
    before = model(X)
    assert type(fastlstm.convert(model)[0]) is FastLSTM
    torch.testing.assert_close(model(X), before)
    model = nn.ModuleList([LSTM(3, 5, bias=False), LSTMCell(3, 5)])
    report = []
    fastlstm.convert(model, report=report)
    assert [c.reason for c in report] == [None, None]
    assert [type(m) for m in model] == [FastLSTM, FastLSTMCell]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch")  # as torch does for its own
def test_weights_are_initialised_stored_and_scripted(replaced):
    fast = nn.LSTM(3, 5)
    fastlstm.init.forget_bias_(fast)
    assert torch.equal(fast.bias_ih_l0[5:10], torch.ones(5))
    fastlstm.init.orthogonal_(LSTM(3, 5))
    model = nn.Sequential(fast)
    with pytest.warns(UserWarning, match="torch.jit.script puts an nn.LSTM"):
        scripted = torch.jit.script(copy.deepcopy(model))
    torch.testing.assert_close(scripted(X), fast(X))
    assert "aten::lstm(" in str(torch.jit.trace(fast, X).inlined_graph)
    fast.weight_dtype = torch.bfloat16
    assert fast.weight_hh_l0.dtype == torch.bfloat16
    assert type(pickle.loads(pickle.dumps(fast))) is FastLSTM


def copied(source, base, first):
    """A class over `base` with what `source` has but its constructor."""

    class Base(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*first, *args, **kwargs)

    for name in vars(source):
        if name != "__init__":
            setattr(Base, name, getattr(source, name))
    return Base


class WithGate(copied(FastLSTM, nn.RNNBase, ["LSTM"])):
    """Such a class of a library's, extended further."""


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}])
def test_a_class_of_the_methods_over_another_base(options):
    plain, fast = LSTM(3, 5, **options), WithGate(3, 5, **options)
    assert not isinstance(fast, LSTM)
    fast.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fast(X), plain(X))
    assert repr(fast) == repr(plain).replace("LSTM(", "WithGate(")
    for got, wanted in zip(
        torch.autograd.grad(fast(X)[0].sum(), list(fast.parameters())),
        torch.autograd.grad(plain(X)[0].sum(), list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
    twin = copy.deepcopy(fast.double().float())
    torch.testing.assert_close(twin(X), plain(X))
    packed = nn.utils.rnn.pack_sequence([X[:2, 0], X[:, 1]], enforce_sorted=False)
    torch.testing.assert_close(fast(packed)[1], plain(packed)[1])
    torch.testing.assert_close(fast.to_torch()(X), plain(X))
    torch.manual_seed(7)
    fast.reset_parameters()
    torch.manual_seed(7)
    plain.reset_parameters()
    torch.testing.assert_close(fast(X), plain(X))
    wrong = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)
    assert contract.outcome(lambda: fast(X, wrong)) == contract.outcome(lambda: plain(X, wrong))


def test_a_step_and_stored_weights_over_another_base():
    plain, fast = LSTM(3, 5), WithGate(3, 5)
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fast.step(X[0])[0], plain(X[:1])[0][0])
        fast.weight_dtype = torch.bfloat16
        assert fast.weight_hh_l0.dtype == torch.bfloat16 and fast.bias_hh_l0.dtype == torch.float32
        assert (fast(X)[0] - plain(X)[0]).abs().max() <= 2**-6


def test_a_cell_of_the_methods_over_another_base():
    class Over(copied(FastLSTMCell, nn.RNNCellBase, [])):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size, True, 4)

    plain, fast = LSTMCell(3, 5), Over(3, 5)
    fast.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fast(X[0]), plain(X[0]))
    assert repr(fast) == "Over(3, 5)"
    assert fast.double().weight_hh.dtype == torch.float64
    wrong = X[0].double(), (torch.zeros(2, 4).double(),) * 2
    found = contract.outcome(lambda: fast(*wrong))
    assert found == contract.outcome(lambda: plain.double()(*wrong))


def test_between_the_fast_class_and_torchs_own_others_are_asked():
    class Counted(LSTM):
        def reset_parameters(self):
            self.__dict__["resets"] = self.__dict__.get("resets", 0) + 1
            super().reset_parameters()

    class Both(FastLSTM, Counted):
        pass

    assert Both(3, 5).resets == 1
