"""patch: who gets a FastLSTM, who does not, and that everything is torch's own again after it."""

import abc
import copy
import importlib
import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm import FastLSTM, FastLSTMCell
from fastlstm import torch_classes as torchs

LIBRARY = """
import torch
import torch.nn as nn
from torch.nn import LSTM, LSTMCell as Cell
from torch.nn.modules.rnn import LSTM as FromItsFile

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}


class Own(LSTM):
    def __init__(self, *args):
        super().__init__(*args)
        self.note = "own"


class Old(nn.LSTM):
    def __init__(self, *args):
        nn.LSTM.__init__(self, *args)

    def forward(self, x):
        return nn.LSTM.forward(self, x)[0] + 1


def all_of_them():
    return nn.LSTM(3, 4), LSTM(3, 4), KINDS["lstm"](3, 4), torch.nn.modules.LSTM(3, 4)
"""


@pytest.fixture(autouse=True)
def unpatched():
    fastlstm.unpatch()
    yield
    fastlstm.unpatch()
    assert nn.LSTM is torchs.LSTM and nn.LSTMCell is torchs.LSTMCell


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A function that imports a library written for torch."""
    (tmp_path / "patch_library.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "patch_library", raising=False)
    yield lambda: importlib.import_module("patch_library")
    sys.modules.pop("patch_library", None)


def fresh(code, *arguments):
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(fastlstm.__file__).parents[1],
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.parametrize("before", [True, False])
def test_a_library_imported_before_or_after(library, before):
    user = library() if before else None
    found = fastlstm.patch()
    user = user or library()
    assert [type(m) for m in user.all_of_them()] == [FastLSTM] * 4
    assert type(user.Cell(3, 4)) is FastLSTMCell
    assert type(user.KINDS["gru"](3, 4)) is nn.GRU
    assert {"torch.nn.LSTM", "torch.nn.LSTMCell"} <= set(found.replaced)
    places = {"patch_library.LSTM", "patch_library.Cell", "patch_library.KINDS['lstm']"}
    assert (places <= set(found.replaced)) == before
    assert places <= set(fastlstm.unpatch())
    assert [type(m) for m in user.all_of_them()] == [torchs.LSTM] * 4
    assert user.LSTM is torchs.LSTM and user.Cell is torchs.LSTMCell and user.FromItsFile is torchs.LSTM


def test_what_is_taken_from_torchs_file_needs_another_call(library):
    fastlstm.patch()
    user = library()
    assert user.FromItsFile is torchs.LSTM
    assert fastlstm.patch().replaced == ("patch_library.FromItsFile",)
    assert type(user.FromItsFile(3, 4)) is FastLSTM


def test_again_changes_nothing():
    assert fastlstm.patch().replaced
    name = nn.LSTM
    assert fastlstm.patch().replaced == ()
    assert nn.LSTM is name
    assert fastlstm.unpatch() and fastlstm.unpatch() == ()


def test_fastlstm_and_torchs_file_keep_their_own():
    fastlstm.patch()
    assert torchs.LSTM is nn.modules.rnn.LSTM is not nn.LSTM
    assert type(FastLSTM(3, 4).to_torch()) is torchs.LSTM
    assert type(fastlstm.convert(torchs.LSTM(3, 4))) is FastLSTM


def test_context_manager():
    with fastlstm.patch() as found:
        assert "torch.nn.LSTM" in found.replaced
        assert type(nn.LSTM(3, 4)) is FastLSTM
    assert nn.LSTM is torchs.LSTM
    with pytest.raises(KeyError), fastlstm.patch():
        raise KeyError
    assert nn.LSTM is torchs.LSTM


def test_context_managers_within_each_other():
    with fastlstm.patch():
        with fastlstm.patch() as inner:
            assert inner.replaced == ()
        assert type(nn.LSTM(3, 4)) is FastLSTM
        fastlstm.unpatch()
        assert nn.LSTM is torchs.LSTM
    fastlstm.patch()
    with fastlstm.patch():
        pass
    assert type(nn.LSTM(3, 4)) is FastLSTM


def test_threads_share_it():
    """In each thread's block it holds, whoever ends first."""
    wrong, start = [], threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(20):
            with fastlstm.patch():
                if type(nn.LSTM(1, 1)) is not FastLSTM:
                    wrong.append(nn.LSTM)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert nn.LSTM is torchs.LSTM


@pytest.mark.parametrize(
    ("name", "plain", "fast"),
    [("LSTM", torchs.LSTM, FastLSTM), ("LSTMCell", torchs.LSTMCell, FastLSTMCell)],
)
def test_classes_both_ways(name, plain, fast):
    class Subclass(plain):
        pass

    old, made = plain(3, 4), fast(3, 4)
    fastlstm.patch()
    stand_in = getattr(nn, name)
    new = stand_in(3, 4)
    for module in (old, made, new, Subclass(3, 4)):
        assert isinstance(module, stand_in) and isinstance(module, plain)
        assert issubclass(type(module), stand_in)
    assert type(new) is fast
    assert not isinstance(nn.GRU(3, 4), stand_in) and not issubclass(nn.GRU, stand_in)
    assert issubclass(stand_in, nn.Module) and isinstance(stand_in, type)
    assert [type(m) == stand_in for m in (new, old, nn.GRU(3, 4))] == [True, True, False]  # noqa: E721
    assert {plain: 1}[stand_in] == {stand_in: 1}[plain] == 1
    assert stand_in.__name__ == name


def test_arguments_and_random_numbers_are_nn_lstms():
    torch.manual_seed(3)
    plain = torchs.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    with fastlstm.patch():
        torch.manual_seed(3)
        fast = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(fast.state_dict()[name], value)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(fast(x)[0], plain(x)[0])


def test_classes_derived_before_stay_as_they_were(library):
    user = library()
    torch.manual_seed(0)
    before, x = user.Old(3, 4), torch.randn(5, 2, 3)
    expected = before(x)
    bases = user.Own.__bases__, user.Old.__bases__
    fastlstm.patch()
    assert (user.Own.__bases__, user.Old.__bases__) == bases == ((torchs.LSTM,), (torchs.LSTM,))
    assert torch.equal(before(x), expected)
    torch.manual_seed(0)
    after = user.Old(3, 4)  # its methods say nn.LSTM, which is another class by now
    assert not isinstance(after, FastLSTM)
    assert torch.equal(after(x), expected)
    assert user.Own(3, 4).note == "own"


def test_classes_derived_under_it_are_fast(library):
    fastlstm.patch()
    user = library()
    own, old = user.Own(3, 4), user.Old(3, 4)
    assert isinstance(own, FastLSTM) and isinstance(old, FastLSTM) and own.note == "own"
    assert type(user.Own) is type  # no class of classes of ours goes along
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(old(x), torchs.LSTM.forward(old, x)[0] + 1)
    torch.testing.assert_close(own(x)[0], own.to_torch()(x)[0])

    class Abstract(abc.ABC):
        @abc.abstractmethod
        def kind(self): ...

    class Cell(nn.LSTMCell, Abstract):
        def kind(self):
            return super().forward.__func__

    assert Cell(3, 4).kind() is FastLSTMCell.forward
    assert issubclass(Cell, Abstract)


def test_copies():
    with fastlstm.patch():

        class Own(nn.LSTM):
            pass

        for module in (nn.LSTM(3, 4), Own(3, 4), nn.LSTMCell(3, 4)):
            again = copy.deepcopy(module)
            assert type(again) is type(module)
            for one, other in zip(module.parameters(), again.parameters(), strict=True):
                assert torch.equal(one, other) and one is not other


WRITE = """
import pickle, sys, torch, fastlstm
sys.path.insert(0, sys.argv[1])
old = torch.nn.LSTM(3, 4)
with fastlstm.patch():
    import patch_library
    torch.manual_seed(1)
    new = torch.nn.LSTM(3, 4), torch.nn.LSTMCell(3, 4), patch_library.Own(3, 4)
    found = [old, *new, torch.nn.LSTM, torch.nn.LSTMCell]
    with open(sys.argv[2], "wb") as file:
        pickle.dump(found, file)
    torch.save(found, sys.argv[3])
"""
READ = """
import pickle, sys, torch
sys.path.insert(0, sys.argv[1])
with open(sys.argv[2], "rb") as file:
    sets = pickle.load(file), torch.load(sys.argv[3], weights_only=False)
x = torch.ones(5, 2, 3)
for old, new, cell, own, *classes in sets:
    assert type(old) is torch.nn.LSTM and classes == [torch.nn.LSTM, torch.nn.LSTMCell]
    assert all(c is getattr(torch.nn, c.__name__) for c in classes)
    assert [type(m).__module__ for m in (new, cell)] == ["fastlstm"] * 2
    assert type(own).__mro__[1] is torch.nn.LSTM and own.note == "own"
    outputs = [m(x)[0].shape for m in (old, new, own)]
    assert outputs == [(5, 2, 4)] * 3 and cell(x[0])[0].shape == (2, 4)
    torch.nn.init.zeros_(own.bias_ih_l0)
    own(x)[0].sum().backward()
print([float(m.weight_hh_l0.detach().double().sum()) for m in (old, new, own)])
"""


def test_pickles_load_in_a_process_without_it(tmp_path, library):
    files = tmp_path, tmp_path / "a.pkl", tmp_path / "a.pt"
    fresh(WRITE, *files)
    assert fresh(READ, *files).startswith("[")


def test_pickles_of_nn_lstm_load_under_it():
    data = pickle.dumps((torchs.LSTM(3, 4), torchs.LSTM))
    with fastlstm.patch():
        module, cls = pickle.loads(data)
        assert type(module) is cls is torchs.LSTM
        assert isinstance(module, nn.LSTM)
        assert type(pickle.loads(pickle.dumps(module))) is torchs.LSTM


def test_lazy_modules_are_not_asked():
    """A module that imports when an attribute is looked up: only what it has is read."""

    class Lazy(types.ModuleType):
        def __getattribute__(self, name):
            raise AssertionError(f"asked for {name}")

    lazy = Lazy("patch_lazy")
    object.__getattribute__(lazy, "__dict__")["LSTM"] = torchs.LSTM
    sys.modules["patch_lazy"], sys.modules["patch_odd"] = lazy, object()
    try:
        assert "patch_lazy.LSTM" in fastlstm.patch().replaced
    finally:
        del sys.modules["patch_lazy"], sys.modules["patch_odd"]


@pytest.mark.filterwarnings("ignore")  # quantization is deprecated, and says so in many words
def test_quantize_dynamic_of_both():
    model = nn.ModuleList([torchs.LSTM(3, 4), FastLSTM(3, 4)])
    fastlstm.patch()
    model.append(nn.LSTM(3, 4))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    plain, *fast = quantized
    assert "quantized" in type(plain).__module__
    assert all(isinstance(m, FastLSTM) and m.weight_dtype is torch.int8 for m in fast)


def test_says_what_it_replaced():
    assert "torch.nn.LSTM" in repr(fastlstm.patch())
    assert repr(fastlstm.patch()) == "<fastlstm.patch of nothing new>"
