"""What nn.LSTM refuses, FastLSTM refuses with the same exception and the same words; what it
refuses in words of its own is listed here, each with the words that must be in them.
"""

import warnings

import pytest
import torch
from pairs import ignore_onednn, one_thread, pair  # noqa: F401  (one_thread is a fixture)
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fastlstm import FastLSTM, checks
from fastlstm.nn import shortcuts

pytestmark = ignore_onednn


def outcome(call):
    """(exception type, its text), or None where the call succeeds."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None


CONSTRUCTORS = {
    "bias-int": ((3, 4), {"bias": 1}),
    "bias-none": ((3, 4), {"bias": None}),
    "batch_first-int": ((3, 4), {"batch_first": 1}),
    "batch_first-str": ((3, 4, 1, True, "yes"), {}),
    "input_size-float": ((3.0, 4), {}),
    "input_size-zero": ((0, 4), {}),
    "input_size-negative": ((-1, 4), {}),
    "hidden_size-float": ((3, 4.0), {}),
    "hidden_size-zero": ((3, 0), {}),
    "num_layers-zero": ((3, 4, 0), {}),
    "num_layers-float": ((3, 4, 1.5), {}),
    "dropout-above": ((3, 4, 2), {"dropout": 1.5}),
    "dropout-below": ((3, 4, 2), {"dropout": -0.1}),
    "dropout-bool": ((3, 4, 2), {"dropout": True}),
    "dropout-str": ((3, 4, 2), {"dropout": "a"}),
    "proj_size-negative": ((3, 4), {"proj_size": -1}),
    "proj_size-hidden": ((3, 4), {"proj_size": 4}),
    "dtype-int": ((3, 4), {"dtype": torch.int64}),
    "device-unknown": ((3, 4), {"device": "nowhere"}),
}
# Torch 2.10 accepts them, and FastLSTM with it.
REFUSED_SINCE_2_11 = (
    "bias-int",
    "bias-none",
    "batch_first-int",
    "batch_first-str",
    "input_size-zero",
)


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_constructor_refuses_as_torch(case):
    args, kwargs = CONSTRUCTORS[case]
    expected = outcome(lambda: nn.LSTM(*args, **kwargs))
    refused = torch.__version__ >= "2.11" or case not in REFUSED_SINCE_2_11
    assert (expected is not None) == refused
    assert outcome(lambda: FastLSTM(*args, **kwargs)) == expected


@pytest.mark.parametrize("kwargs", [{}, {"hidden_size": 4}, {"input_size": 3, "hiden_size": 4}])
def test_constructor_with_wrong_names_is_a_type_error(kwargs):
    assert outcome(lambda: nn.LSTM(**kwargs))[0] is TypeError
    assert outcome(lambda: FastLSTM(**kwargs))[0] is TypeError


def test_constructor_warns_of_dropout_with_one_layer_as_torch():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nn.LSTM(3, 4, dropout=0.5)
        FastLSTM(3, 4, dropout=0.5)
    theirs, ours = caught
    assert (ours.category, str(ours.message)) == (theirs.category, str(theirs.message))


def test_constructor_refuses_an_unknown_backend():
    with pytest.raises(ValueError, match="backend: got 'cudnn', expected one of 'auto'"):
        FastLSTM(3, 4, backend="cudnn")
    with pytest.raises(TypeError):
        FastLSTM(3, 4, 1, True, False, 0.0, False, 0, None, None, "auto")


def states(*shapes):
    return tuple(torch.zeros(shape) for shape in shapes)


BATCHED, UNBATCHED = torch.zeros(5, 2, 3), torch.zeros(5, 3)
ODD = {
    "rank-1": (torch.zeros(3), None),
    "rank-4": (torch.zeros(1, 5, 2, 3), None),
    "rank-0": (torch.zeros(()), None),
    "list": ([[1.0, 2.0, 3.0]], None),
    "none": (None, None),
    "float64": (BATCHED.double(), None),
    "int64": (BATCHED.long(), None),
    "width": (torch.zeros(5, 2, 4), None),
    "width-unbatched": (torch.zeros(5, 4), None),
    "h0-rows": (BATCHED, states((2, 2, 4), (1, 2, 4))),
    "c0-rows": (BATCHED, states((1, 2, 4), (2, 2, 4))),
    "h0-batch": (BATCHED, states((1, 3, 4), (1, 2, 4))),
    "c0-batch": (BATCHED, states((1, 2, 4), (1, 3, 4))),
    "h0-width": (BATCHED, states((1, 2, 5), (1, 2, 4))),
    "c0-width": (BATCHED, states((1, 2, 4), (1, 2, 5))),
    "batched-with-2-D": (BATCHED, states((1, 4), (1, 4))),
    "batched-with-2-D-c0": (BATCHED, states((1, 2, 4), (1, 4))),
    "unbatched-with-3-D": (UNBATCHED, states((1, 1, 4), (1, 1, 4))),
    "unbatched-h0-width": (UNBATCHED, states((1, 5), (1, 4))),
    "unbatched-rows": (UNBATCHED, states((2, 4), (2, 4))),
    "everything": (torch.zeros(5, 2, 4).double(), states((1, 9), (7,))),
}


@pytest.mark.parametrize("batch_first", [False, True], ids=["TNI", "NTI"])
@pytest.mark.parametrize("case", ODD)
def test_forward_refuses_as_torch(case, batch_first):
    lstm, fast = pair(3, 4, batch_first=batch_first)
    input, hx = ODD[case]
    if batch_first and isinstance(input, torch.Tensor) and input.dim() == 3:
        input = input.transpose(0, 1)
    expected = outcome(lambda: lstm(input, hx))
    assert expected is not None
    assert outcome(lambda: fast(input, hx)) == expected


def test_forward_refuses_other_devices_as_torch():
    lstm, fast = pair(3, 4)
    away = torch.zeros(1, 2, 4, device="meta")
    for input, hx in (
        (BATCHED, (away, torch.zeros(1, 2, 4))),
        (BATCHED, (torch.zeros(1, 2, 4), away)),
    ):
        expected = outcome(lambda input=input, hx=hx: lstm(input, hx))
        assert expected is not None
        assert outcome(lambda input=input, hx=hx: fast(input, hx)) == expected


@pytest.mark.parametrize(
    "name, weight",
    [
        ("weight_ih_l0", torch.zeros(16, 4)),
        ("weight_hh_l0", torch.zeros(16, 3)),
        ("weight_hh_l0", torch.zeros(12, 4)),
        ("weight_hh_l0", torch.zeros(16, 4, dtype=torch.float64)),
        ("weight_hh_l0", torch.zeros(16, 4, device="meta")),
        ("weight_ih_l0", None),
        ("bias_hh_l0", torch.zeros(15)),
        ("bias_hh_l0", None),
    ],
    ids=[
        "ih-width",
        "hh-width",
        "hh-rows",
        "hh-dtype",
        "hh-device",
        "ih-none",
        "bias-size",
        "bias-none",
    ],
)
def test_weights_that_do_not_fit_are_named(name, weight):
    # nn.LSTM hands some of these to a kernel that reads past their end.
    fast = FastLSTM(3, 4)
    delattr(fast, name)
    setattr(fast, name, weight)
    with pytest.raises(ValueError, match=f"{name}: "):
        fast(BATCHED)


PACKED = pack_sequence([torch.zeros(n, 3) for n in (4, 2)])


@pytest.mark.parametrize(
    "data",
    [torch.zeros(6, 4), torch.zeros(6, 3).double(), torch.zeros(6, 3).long(), torch.zeros(6, 1, 3)],
    ids=["width", "float64", "int64", "rank"],
)
def test_packed_input_is_refused_as_a_padded_one(data):
    # nn.LSTM does not check it, and takes some of it, reading what it should not.
    lstm, fast = pair(3, 4)
    packed = PackedSequence(data, PACKED.batch_sizes)
    expected = outcome(lambda: lstm.check_input(data, PACKED.batch_sizes))
    assert expected is not None
    assert outcome(lambda: fast(packed)) == expected


def h(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


OWN = {
    "hx-none-pair": (BATCHED, (None, None), "hx: got (None, None), expected a pair of tensors"),
    "hx-none-c0": (BATCHED, (h(1, 2, 4), None), "hx: got (Tensor, None)"),
    "hx-none-unbatched": (UNBATCHED, [None, None], "hx: got (None, None)"),
    "one-state": (BATCHED, states((1, 2, 4)), "hx: got (Tensor), expected a pair"),
    "three-states": (BATCHED, states(*[(1, 2, 4)] * 3), "hx: got (Tensor, Tensor, Tensor), exp"),
    "three-states-unbatched": (UNBATCHED, states(*[(1, 4)] * 3), "hx: got (Tensor, Tensor, Te"),
    "hx-stacked": (BATCHED, torch.zeros(2, 1, 2, 4), "hx: got Tensor, expected a pair"),
    "hx-empty": (BATCHED, (), "hx: got (), expected a pair of tensors"),
    "hx-number": (BATCHED, 1, "hx: got int, expected a pair of tensors"),
    "hx-list-of-lists": (BATCHED, [[0.0], [0.0]], "hx: got (list, list), expected a pair"),
    "hx-generator": (BATCHED, iter(states((1, 2, 4))), "hx: got tuple_iterator, expected a pair"),
    "h0-dtype": (BATCHED, (h(1, 2, 4).double(), h(1, 2, 4)), "hx[0] (h0): got dtype torch.float64"),
    "c0-dtype": (BATCHED, (h(1, 2, 4), h(1, 2, 4).half()), "hx[1] (c0): got dtype torch.float16"),
    "unbatched-dtype": (UNBATCHED, (h(1, 4), h(1, 4).double()), "hx[1] (c0): got dtype"),
    "packed-none": (PACKED, (None, None), "hx: got (None, None)"),
    "packed-tensor": (PACKED, h(1, 2, 4), "hx: got Tensor, expected a pair"),
    "packed-rank": (PACKED, (h(1, 4), h(1, 4)), "hx[0] (h0): got shape (1, 4), expected (1, 2, 4)"),
    "packed-batch": (PACKED, (h(1, 2, 4), h(1, 3, 4)), "hx[1] (c0): got shape (1, 3, 4)"),
    "packed-width": (PACKED, (h(1, 2, 5), h(1, 2, 4)), "hx[0] (h0): got shape (1, 2, 5)"),
    "packed-dtype": (PACKED, (h(1, 2, 4).double(), h(1, 2, 4)), "hx[0] (h0): got dtype"),
    "packed-of-rags": (
        PackedSequence(torch.zeros(7, 3), PACKED.batch_sizes),
        None,
        "input: got a PackedSequence of 7 rows with batch_sizes [2, 2, 1, 1]",
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_forward_refuses_in_its_own_words(case):
    input, hx, words = OWN[case]
    with pytest.raises(ValueError) as error:
        FastLSTM(3, 4)(input, hx)
    assert words in str(error.value)


def n(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


OPTIONS = {
    "lengths-list": (BATCHED, {"lengths": [1, 2]}, "lengths: got list, expected an integer tensor"),
    "lengths-float": (BATCHED, {"lengths": n(1, 2, dtype=torch.float32)}, "lengths: got dtype"),
    "lengths-shape": (BATCHED, {"lengths": n(1, 2, 3)}, "lengths: got shape (3,), expected (2,)"),
    "lengths-column": (BATCHED, {"lengths": n(1, 2).view(2, 1)}, "lengths: got shape (2, 1)"),
    "lengths-above": (BATCHED, {"lengths": n(1, 6)}, "expected 0 to T = 5"),
    "lengths-below": (BATCHED, {"lengths": n(1, -1)}, "lengths: got values from -1 to 1"),
    "lengths-unbatched": (UNBATCHED, {"lengths": n(1, 2)}, "lengths: got shape (2,)"),
    "lengths-packed": (PACKED, {"lengths": n(4, 2)}, "lengths: got a tensor beside a Packed"),
    "reset-list": (BATCHED, {"reset_mask": [[True]]}, "reset_mask: got list"),
    "reset-float": (BATCHED, {"reset_mask": h(5, 2)}, "reset_mask: got dtype torch.float32"),
    "reset-shape": (BATCHED, {"reset_mask": h(2, 5).bool()}, "expected (T, N) = (5, 2)"),
    "reset-unbatched": (UNBATCHED, {"reset_mask": h(5, 1).bool()}, "expected (T,) = (5,)"),
    "reset-packed": (PACKED, {"reset_mask": h(6).bool()}, "expected (T, N) = (4, 2)"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_forward_refuses_options_that_do_not_fit(case):
    input, options, words = OPTIONS[case]
    with pytest.raises(ValueError) as error:
        FastLSTM(3, 4)(input, **options)
    assert words in str(error.value)


def test_forward_names_the_layout_of_batch_first():
    with pytest.raises(ValueError, match=r"expected \(N, T\) = \(5, 2\), laid out like the input"):
        FastLSTM(3, 4, batch_first=True)(BATCHED, reset_mask=torch.zeros(2, 5).bool())


def test_forward_with_a_fourth_positional_argument_is_a_type_error():
    with pytest.raises(TypeError):
        FastLSTM(3, 4)(BATCHED, None, n(5, 5))


def test_a_backend_that_is_not_there_is_named():
    fast = FastLSTM(3, 4)
    fast.backend = "nowhere"
    with pytest.raises(ValueError, match="backend: got 'nowhere'"):
        fast(BATCHED)


def test_on_a_gpu_lengths_are_looked_at_only_when_asked_to(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("FASTLSTM_CHECK", raising=False)
    assert checks.may_look(cpu) and not checks.may_look(gpu)
    monkeypatch.setenv("FASTLSTM_CHECK", "1")
    assert checks.may_look(gpu) and not checks.may_look(torch.device("meta"))


def test_lengths_that_are_not_looked_at_go_the_short_way(monkeypatch):
    """On any device but the CPU, which has its own look at them."""
    x, lengths = torch.empty(3, 2, 4, device="meta"), torch.empty(2, 9, device="meta").long()[:, 0]
    for looked_at in (False, True):
        monkeypatch.setattr(shortcuts, "may_look", lambda device, found=looked_at: found)
        assert shortcuts._takes(lengths, x) is not looked_at
        assert shortcuts._takes(torch.ones(2, dtype=torch.int64), torch.empty(3, 2, 4))
        assert not shortcuts._takes(lengths.int(), x)
        assert not shortcuts._takes(torch.ones(2, dtype=torch.int64), x)
