"""2,000 random calls, valid and invalid, of nn.LSTM and FastLSTM: the same outcome.

That is: results within the error budget, or the same exception type. The differences that are
meant are listed in `OWN`; anything else is a fault.
"""

import random
import warnings

import pytest
import torch
from pairs import needs_library, one_thread, pair  # noqa: F401  (one_thread is a fixture)
from torch.nn.utils.rnn import PackedSequence

from fastlstm import FastLSTM
from fastlstm.testing import compare, make_input, make_states, map_tensors

CALLS = 2000
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Faults for which FastLSTM has an answer of its own: a result (None), or an exception. The data of
# a PackedSequence and the hx beside it, nn.LSTM does not check: with some it computes on whatever
# lies in memory, with some it crashes the interpreter. So these are not given to it.
OWN = {
    "no steps": None,
    "hx dtype": ValueError,
    "hx none": ValueError,
    "hx count": ValueError,
    "hx type": ValueError,
    "hx beside packed": ValueError,
    "packed dtype": ValueError,
    "packed width": RuntimeError,
}


def outcome(call):
    """The exception that a call raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None


class Call:
    """One random module and its arguments, with the names of the faults that were put in."""

    def __init__(self, chance: random.Random):
        self.chance, self.faults = chance, []
        flip = lambda p=0.5: chance.random() < p  # noqa: E731
        T, self.N, I = chance.randint(1, 6), chance.choice([0, 1, 2, 3, 7]), chance.randint(1, 5)
        H = chance.choice([1, 2, 3, 8, 17])
        self.dtype = chance.choice(DTYPES)
        self.lstm, self.fast = pair(
            I,
            H,
            chance.randint(1, 3),
            bias=flip(),
            batch_first=flip(),
            bidirectional=flip(),
            proj_size=chance.randint(1, H - 1) if H > 1 and flip(0.3) else 0,
            dtype=self.dtype,
        )
        kinds = ["batched", "batched", "unbatched"] + ["packed"] * (self.N > 0)
        self.kind = chance.choice(kinds)
        self.input = make_input(T, self.N, I, self.dtype, kind=self.kind, batch_first=self.lstm.batch_first)
        rows = None if self.kind == "unbatched" else self.N
        self.hx = make_states(self.lstm, rows, self.dtype) if flip() else None
        if self.hx is not None and flip(0.3):
            self.hx = list(self.hx)
        if flip(0.3):
            self.input = map_tensors(self.odd_strides, self.input)
            self.hx = map_tensors(self.odd_strides, self.hx)
        for _ in range(chance.choice([0, 0, 1, 1, 2])):
            fault = chance.choice(INPUT_FAULTS + (HX_FAULTS if self.hx is not None else ()))
            fault(self)

    def odd_strides(self, tensor):
        wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
        view = wide[..., 1::2]
        view.copy_(tensor)
        return view

    def replace_input(self, fn, fault):
        self.input = map_tensors(fn, self.input)
        self.faults.append(fault.replace("input", "packed") if self.kind == "packed" else fault)

    def replace_state(self, fn, fault):
        k, states = self.chance.randint(0, 1), list(self.hx)
        if len(states) == 2 and isinstance(states[k], torch.Tensor):
            states[k] = fn(states[k])
            self.hx = tuple(states)
            self.faults.append("hx beside packed" if self.kind == "packed" else fault)


def input_dtype(call):
    other = call.chance.choice([d for d in (*DTYPES, torch.int64) if d != call.dtype])
    call.replace_input(lambda t: t.to(other), "input dtype")


def input_width(call):
    call.replace_input(lambda t: torch.cat([t, t], dim=-1), "input width")


def input_rank(call):
    if call.kind != "packed":
        call.replace_input(lambda t: t[None, None], "input rank")


def no_steps(call):
    if call.kind != "packed":
        time = 1 if call.lstm.batch_first and call.kind == "batched" else 0
        call.replace_input(lambda t: t.narrow(time, 0, 0), "no steps")


def hx_dtype(call):
    other = call.chance.choice([d for d in DTYPES if d != call.dtype])
    call.replace_state(lambda t: t.to(other), "hx dtype")


def hx_none(call):
    call.replace_state(lambda t: None, "hx none")


def hx_width(call):
    call.replace_state(lambda t: torch.cat([t, t[..., :1]], dim=-1), "hx shape")


def hx_rows(call):
    call.replace_state(lambda t: torch.cat([t, t]), "hx shape")


def hx_rank(call):
    call.replace_state(lambda t: t.unsqueeze(1), "hx shape")


def hx_count(call):
    call.hx = (*call.hx, call.hx[0])[: call.chance.choice([1, 3])]
    call.faults.append("hx beside packed" if call.kind == "packed" else "hx count")


def hx_number(call):
    call.hx = 1.5
    call.faults.append("hx beside packed" if call.kind == "packed" else "hx type")


def hx_stacked(call):
    call.hx = torch.zeros(2, 1, 2, 3)
    call.faults.append("hx beside packed" if call.kind == "packed" else "hx type")


INPUT_FAULTS = (input_dtype, input_width, input_rank, no_steps)
HX_FAULTS = (hx_dtype, hx_none, hx_width, hx_rows, hx_rank, hx_count)


def check(call):
    own = set(call.faults) & OWN.keys()
    unsafe = any("packed" in fault for fault in own)
    theirs = None if unsafe else outcome(lambda: call.lstm(call.input, call.hx))
    ours = outcome(lambda: call.fast(call.input, call.hx))
    if theirs is None and not own:
        assert ours is None, f"nn.LSTM takes this, FastLSTM raised {ours!r}"
        compare(call.fast, call.lstm, call.input, call.hx, gradients=call.chance.random() < 0.2)
        return
    expected = {OWN[fault] or type(None) for fault in own}
    if theirs is not None:
        expected.add(type(theirs))
    assert type(ours) in expected, f"nn.LSTM raised {theirs!r}, FastLSTM {ours!r}"
    if all(fault.startswith("hx") for fault in own) and own == set(call.faults):
        assert str(ours).startswith("hx"), str(ours)


@needs_library
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with")
@pytest.mark.parametrize("part", range(4))
def test_random_calls_end_as_torch(part):
    for seed in range(part * CALLS // 4, (part + 1) * CALLS // 4):
        torch.default_generator.manual_seed(seed)
        call = Call(random.Random(seed))
        try:
            check(call)
        except AssertionError as error:
            shapes = map_tensors(lambda t: (*t.shape, str(t.dtype)), (call.input, call.hx))
            raise AssertionError(
                f"call {seed}: {call.lstm}, {call.kind}, {shapes}, faults {call.faults}: {error}"
            ) from None


def random_options(chance, T, N):
    """lengths and reset_mask that fit, nearly fit, or do not fit at all."""
    lengths = chance.choice(
        [
            None,
            torch.randint(0, T + 1, (N,)),
            torch.randint(-1, T + 2, (N,)),
            torch.randint(0, T + 1, (N + 1,)),
            torch.rand(N),
            3,
        ]
    )
    mask = chance.choice(
        [
            None,
            torch.rand(T, N) < 0.5,
            (torch.rand(N, T) < 0.5).t(),
            torch.rand(N, T + 1) < 0.5,
            torch.rand(T, N),
        ]
    )
    return {"lengths": lengths, "reset_mask": mask, "return_cell_sequence": chance.random() < 0.5}


@needs_library
def test_random_options_give_a_result_or_a_value_error():
    outcomes = set()
    for seed in range(300):
        torch.default_generator.manual_seed(seed)
        chance = random.Random(seed)
        T, N = chance.randint(0, 5), chance.randint(0, 4)
        fast = FastLSTM(3, chance.randint(1, 9), 2, bidirectional=chance.random() < 0.5)
        x = torch.randn(T, N, 3)
        options = random_options(chance, T, N)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = outcome(lambda fast=fast, x=x, options=options: fast(x, **options))
        if found is not None:
            assert type(found) is ValueError, repr(found)
            assert str(found).startswith(("lengths: ", "reset_mask: ")), str(found)
        else:
            assert all(t.isfinite().all() for t in fast(x, **options)[1])
        outcomes.add(found is None)
    assert outcomes == {True, False}


def test_a_packed_sequence_made_by_hand_does_no_harm():
    fast = FastLSTM(3, 4)
    for sizes in ([2, 3], [3, 2, 2], [0], [2, 0], [-1, 3], [5]):
        packed = PackedSequence(torch.zeros(4, 3), torch.tensor(sizes))
        error = outcome(lambda packed=packed: fast(packed))
        assert isinstance(error, (ValueError, RuntimeError)), (sizes, error)
