"""What other code reads, replaces or calls of an LSTM module; each beside nn.LSTM."""

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from pairs import ignore_onednn, one_thread, pair  # noqa: F401  (one_thread is a fixture)
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

import fastlstm
from fastlstm import FastLSTM, FastLSTMCell
from fastlstm.interop.convert import Converted
from fastlstm.testing import compare
from fastlstm.weights import LayerNormWeights

pytestmark = ignore_onednn

X = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    {"num_layers": 3, "bias": False, "batch_first": True, "dropout": 0.25},
]


def same_results(a, b):
    torch.testing.assert_close(a[0], b[0])
    torch.testing.assert_close(a[1], b[1])


@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_an_lstm_of_the_same_parts(options):
    lstm, fast = nn.LSTM(3, 5, **options), FastLSTM(3, 5, **options)
    assert isinstance(fast, nn.LSTM)
    assert fast.mode == "LSTM"
    assert repr(fast) == repr(lstm).replace("LSTM(", "FastLSTM(")
    assert fast._flat_weights_names == lstm._flat_weights_names
    assert fast._all_weights == lstm._all_weights
    assert [k for k, _ in fast.named_parameters()] == [k for k, _ in lstm.named_parameters()]
    assert list(fast.state_dict()) == list(lstm.state_dict())
    assert [[w.shape for w in layer] for layer in fast.all_weights] == [
        [w.shape for w in layer] for layer in lstm.all_weights
    ]
    assert all(a is b for a, b in zip(fast._flat_weights, fast.parameters(), strict=True))
    assert fast.__constants__ == lstm.__constants__
    assert type(FastLSTM) is type(nn.LSTM)
    assert FastLSTM.__doc__ != nn.LSTM.__doc__


def test_repr_names_a_chosen_backend():
    assert repr(FastLSTM(3, 5, backend="reference")) == "FastLSTM(3, 5, backend='reference')"


@pytest.mark.parametrize("options", OPTIONS)
def test_same_seed_gives_the_same_weights(options):
    weights = []
    for cls in (nn.LSTM, FastLSTM):
        torch.manual_seed(5)
        module = cls(3, 5, **options)
        made = [p.detach().clone() for p in module.parameters()]
        module.reset_parameters()
        weights.append([*made, *module.parameters(), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("options", OPTIONS)
def test_state_dicts_load_both_ways(options):
    lstm, fast = nn.LSTM(3, 5, **options).eval(), FastLSTM(3, 5, **options).eval()
    fast.load_state_dict(lstm.state_dict(), strict=True)
    same_results(fast(X), lstm(X))
    fast.reset_parameters()
    lstm.load_state_dict(fast.state_dict(), strict=True)
    same_results(fast(X), lstm(X))
    fast.load_state_dict(nn.LSTM(3, 5, **options).state_dict(), assign=True)
    lstm.load_state_dict(fast.state_dict())
    same_results(fast(X), lstm(X))


def test_flatten_parameters_does_nothing_and_may_be_replaced():
    fast = FastLSTM(3, 5)
    before = [p.data_ptr() for p in fast.parameters()]
    assert fast.flatten_parameters() is None
    assert before == [p.data_ptr() for p in fast.parameters()]
    fast.flatten_parameters = lambda: None
    fast(X)


def test_no_warning_of_weights_that_are_not_in_one_piece():
    fast = FastLSTM(3, 5)
    for name, p in list(fast.named_parameters()):
        setattr(fast, name, nn.Parameter(p.detach().t().contiguous().t()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(X)


def test_helper_methods_answer_as_torch():
    lstm, fast = pair(3, 5, 2, proj_size=2)
    hx = (torch.zeros(2, 2, 2), torch.zeros(2, 2, 5))
    for module in (lstm, fast):
        module.check_forward_args(X, hx, None)
        with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
            module.check_forward_args(X, hx[::-1], None)
    assert fast.get_expected_hidden_size(X, None) == lstm.get_expected_hidden_size(X, None)
    assert fast.get_expected_cell_size(X, None) == lstm.get_expected_cell_size(X, None)
    swap = torch.tensor([1, 0])
    h, c = fast.permute_hidden((torch.arange(4.0).view(1, 2, 2),) * 2, swap)
    assert torch.equal(h, torch.tensor([[[2.0, 3.0], [0.0, 1.0]]]))
    assert torch.equal(h, c)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("how", ["pickle", "save", "deepcopy"])
def test_copies_compute_the_same(how, options):
    fast = FastLSTM(3, 5, **options, backend="reference").eval()
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(fast))
    elif how == "save":
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(fast)
    assert type(twin) is FastLSTM
    assert twin.backend == "reference"
    assert not {p.data_ptr() for p in fast.parameters()} & {p.data_ptr() for p in twin.parameters()}
    same_results(twin(X), fast(X))
    with torch.no_grad():
        twin.weight_hh_l0.zero_()
    assert fast.weight_hh_l0.abs().max() > 0


@pytest.mark.parametrize(
    ("made", "path"),
    [
        (lambda: FastLSTM(3, 5, 2, dropout=0.5), "module"),
        (lambda: FastLSTMCell(3, 5, bias=False), "cell"),
        (lambda: LayerNormWeights(*torch.ones(4, 3).unbind()), "variant_layers"),
        (lambda: Converted("encoder", "LSTM", None), "convert"),
    ],
)
def test_pickles_that_name_other_paths_load(made, path):
    value = made()
    written = pickle.dumps(value, 0)
    name = type(value).__name__.encode()
    line = b"c%s\n%s\n" % (type(value).__module__.encode(), name)
    assert line in written
    # In a new interpreter, which has imported nothing of fastlstm.
    code = "import pickle, sys; print(type(pickle.load(sys.stdin.buffer)).__qualname__)"
    read = subprocess.run(
        [sys.executable, "-c", code],
        input=written.replace(line, b"cfastlstm.%s\n%s\n" % (path.encode(), name)),
        env={**os.environ, "PYTHONPATH": str(Path(fastlstm.__file__).parents[1])},
        capture_output=True,
    )
    assert read.stdout.split() == [name], read.stderr.decode()
    assert {FastLSTM.__module__, FastLSTMCell.__module__} == {"fastlstm"}


def test_states_of_other_versions_load():
    lstm = nn.LSTM(3, 5)
    state = lstm.__getstate__()
    state.pop("proj_size")  # older than torch 1.8
    fast = FastLSTM.__new__(FastLSTM)
    fast.__setstate__(state)
    assert (fast.proj_size, fast.backend) == (0, "auto")
    same_results(fast(X), lstm(X))


OLD = {
    "1.3": lambda lstm, state: state.pop("_flat_weights_names"),
    "1.3 without the list": lambda lstm, state: [state.pop(k) for k in ("_flat_weights_names", "_flat_weights")],
    "without the list": lambda lstm, state: state.pop("_flat_weights"),
    "0.1": lambda lstm, state: state.update(
        all_weights=lstm.all_weights, _all_weights=state.pop("_flat_weights_names")[:0]
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("age", OLD)
def test_states_of_old_versions_load_and_run(age, options, backend):
    lstm = nn.LSTM(3, 5, **options)
    state = lstm.__getstate__()
    state.pop("proj_size")
    state["_data_ptrs"] = []
    OLD[age](lstm, state)
    fast = FastLSTM.__new__(FastLSTM)
    fast.__setstate__(state)
    fast.backend = backend
    assert fast._flat_weights_names == lstm._flat_weights_names
    assert fast._all_weights == lstm._all_weights
    for module in (fast, pickle.loads(pickle.dumps(fast)), copy.deepcopy(fast).float()):
        assert list(module.state_dict()) == list(lstm.state_dict())
        same_results(module(X), lstm(X))
    fast.double()
    with torch.no_grad():
        fast.weight_hh_l0.zero_()
    assert not fast._flat_weights[1].any()


def test_share_memory():
    fast = FastLSTM(3, 5).share_memory()
    assert all(p.is_shared() for p in fast.parameters())
    fast(X)


def test_to_and_half_convert_all():
    fast = FastLSTM(3, 5).to(torch.float64)
    assert fast(X.double())[0].dtype == torch.float64
    assert fast.half()(X.half())[1][0].dtype == torch.float16
    assert fast.bfloat16()(X.bfloat16())[1][1].dtype == torch.bfloat16


def test_meta_device():
    lstm, fast = pair(3, 5, 2, bidirectional=True, proj_size=2, device="meta")
    x = X.to("meta")
    for ours, theirs in zip(flat(fast(x)), flat(lstm(x)), strict=True):
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    made = fast.to_empty(device="cpu")
    made.reset_parameters()
    assert made(X)[0].device.type == "cpu"


def flat(result):
    output, state = result
    return output, *state


def test_a_write_through_data_is_seen():
    lstm, fast = pair(3, 5)
    fast(X)
    for module in (lstm, fast):
        module.weight_hh_l0.data.mul_(2)
        module.weight_ih_l0.data.numpy()[:] *= 0.5
    same_results(fast(X), lstm(X))


def test_replaced_parameters_are_seen():
    lstm, fast = pair(3, 5)
    fast(X)
    new = nn.Parameter(torch.randn(20, 5))
    for module in (lstm, fast):
        module.weight_hh_l0 = new
    same_results(fast(X), lstm(X))
    assert fast._flat_weights[1] is new
    fast._parameters["weight_hh_l0"] = nn.Parameter(torch.zeros(20, 5))
    lstm._parameters["weight_hh_l0"] = nn.Parameter(torch.zeros(20, 5))
    same_results(fast(X), lstm(X))


def test_functional_call():
    lstm, fast = pair(3, 5, 2)
    other = {k: torch.randn_like(v) for k, v in fast.named_parameters()}
    before = fast(X)
    same_results(functional_call(fast, other, (X,)), functional_call(lstm, other, (X,)))
    same_results(fast(X), before)


def test_weight_drop_wrappers():
    """A plain tensor, made from a parameter of another name, in the place of weight_hh_l0."""
    lstm, fast = pair(3, 5)
    for module in (lstm, fast):
        raw = module.weight_hh_l0
        del module._parameters["weight_hh_l0"]
        module.register_parameter("weight_hh_l0_raw", raw)
        module.flatten_parameters = lambda: None
    mask = torch.rand(20, 5) < 0.5
    for module in (lstm, fast):
        module.weight_hh_l0 = module.weight_hh_l0_raw * mask
        module(X)[0].sum().backward()
    same_results(fast(X), lstm(X))
    torch.testing.assert_close(fast.weight_hh_l0_raw.grad, lstm.weight_hh_l0_raw.grad)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations(wrap):
    lstm, fast = pair(3, 5)
    for module in (lstm, fast):
        torch.manual_seed(3)
        wrap(module, "weight_hh_l0")
        module.eval()
    state = {k: v.clone() for k, v in lstm.state_dict().items()}
    fast.load_state_dict(state)
    compare(fast, lstm, X)
    fast.to(torch.float32)
    fast(X)[0].sum().backward()
    same_results(copy.deepcopy(fast)(X), lstm(X))  # which nn.LSTM cannot after .to()
    parametrize.remove_parametrizations(fast, "weight_hh_l0")
    assert type(fast) is FastLSTM
    same_results(fast(X), lstm(X))


def test_old_weight_norm():
    lstm, fast = pair(3, 5)
    for module in (lstm, fast):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.nn.utils.weight_norm(module, "weight_hh_l0")
        module.weight_hh_l0_g.data.mul_(2)
    same_results(fast(X), lstm(X))


def test_pruning():
    lstm, fast = pair(3, 5)
    for module in (lstm, fast):
        prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
    same_results(fast(X), lstm(X))
    for module in (lstm, fast):
        module(X)[0].sum().backward()
    torch.testing.assert_close(fast.weight_hh_l0_orig.grad, lstm.weight_hh_l0_orig.grad)
    prune.remove(fast, "weight_hh_l0")
    same_results(fast(X), lstm(X))


def test_hooks_run():
    seen = []
    fast = FastLSTM(3, 5)
    fast.register_forward_pre_hook(lambda m, args: seen.append("before"))
    fast.register_forward_hook(lambda m, args, out: seen.append("after"))
    fast(X)
    fast.step(X[0])
    assert seen == ["before", "after"] * 2


def test_frozen_parameters_get_no_gradient():
    lstm, fast = pair(3, 5)
    for module in (lstm, fast):
        module.weight_hh_l0.requires_grad_(False)
        module(X)[0].sum().backward()
        assert module.weight_hh_l0.grad is None
    torch.testing.assert_close(fast.weight_ih_l0.grad, lstm.weight_ih_l0.grad)


def test_one_module_serves_many_threads():
    lstm, fast = pair(3, 5, 2)
    inputs = [torch.randn(n, 2, 3) for n in range(1, 9)]
    found = {}

    def work(k):
        for _ in range(5):
            found[k] = fast(inputs[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, x in enumerate(inputs):
        same_results(found[k], lstm(x))


def test_weight_init_functions_find_it():
    def orthogonal(module):
        if isinstance(module, nn.LSTM):
            for name, p in module.named_parameters():
                if "weight" in name:
                    nn.init.orthogonal_(p)

    weights = []
    for cls in (nn.LSTM, FastLSTM):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(2, 3), cls(3, 5)).apply(orthogonal)
        weights.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_subclasses_with_another_metaclass():
    from abc import ABC, abstractmethod

    class Base(ABC):
        @abstractmethod
        def name(self): ...

    class Both(FastLSTM, Base):
        def name(self):
            return "both"

    assert Both(3, 5)(X)[0].shape == (4, 2, 5)


def test_a_docstring_may_be_appended_to():
    class Documented(FastLSTM):
        __doc__ = FastLSTM.__doc__ + "\nMore."

    assert "torch.nn.LSTM" in Documented.__doc__
