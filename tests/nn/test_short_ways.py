"""The shortest ways of a call keep nothing from call to call that a change of the module could
leave behind, and the op of int8 calls gives what the general way gives, or nothing.
"""

import copy

import pytest
import torch
from pairs import ignore_onednn, needs_library
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastlstm import FastLSTM, FastLSTMCell
from fastlstm.nn import int8_calls, lstm, shortcuts

pytestmark = [ignore_onednn]

INT8 = torch.int8
X = torch.randn(2, 3, 5)
STATE = torch.randn(3, 7), torch.randn(3, 7)


def stack(module):
    return module(X)


def step(module):
    hx = tuple(s.expand(2, 3, 7) for s in STATE)
    return module.step(X[0], hx) if isinstance(module, FastLSTM) else module(X[:1], hx)


# A module, and a call of it that goes the shortest way.
CALLS = {
    "stack": (lambda **options: FastLSTM(5, 7, 2, **options), stack),
    "step": (lambda **options: FastLSTM(5, 7, 2, **options), step),
    "cell": (lambda **options: FastLSTMCell(5, 7, **options), lambda cell: cell(X[0], STATE)),
}


def flat(results):
    """The tensors of a call, a step's output as a row of steps."""
    found = []
    for r in results:
        found += [r] if isinstance(r, torch.Tensor) else list(r)
    return [f.squeeze(0) for f in found]


def weight_name(fast):
    """Of one of its weights, of int8 its scales."""
    name = "weight_hh" if isinstance(fast, nn.LSTMCell) else "weight_hh_l0"
    return name + "_scale" * (fast.weight_dtype is INT8)


def set_data(fast):
    weight = getattr(fast, weight_name(fast))
    weight.data = weight.data * 8


def set_attribute(fast):
    name = weight_name(fast)
    changed = getattr(fast, name).detach() * 8
    setattr(fast, name, changed if fast.weight_dtype is INT8 else nn.Parameter(changed))


def in_place(fast):
    getattr(fast, weight_name(fast)).mul_(8)


def loaded(fast, **options):
    state = copy.deepcopy(fast.to_torch().state_dict())
    fast.load_state_dict({name: w * 8 for name, w in state.items()}, **options)


def assigned(fast):
    loaded(fast, assign=True)


def pruned(fast):
    """What torch.nn.utils' older tools do: the weight becomes an attribute."""
    name = weight_name(fast)
    value = getattr(fast, name).detach() * 8
    (fast._buffers if fast.weight_dtype is INT8 else fast._parameters).pop(name)
    setattr(fast, name, value)


def stored_otherwise(fast):
    """float32 as int8, and int8 as float32 of more bits."""
    in_place(fast)
    fast.weight_dtype = None if fast.weight_dtype is INT8 else INT8
    if fast.weight_dtype is INT8:
        fast.weight_only = True


CHANGES = [set_data, set_attribute, in_place, loaded, assigned, pruned, stored_otherwise]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [None, INT8])
@pytest.mark.parametrize("call", CALLS)
def test_what_changes_between_calls_is_seen(call, dtype, change):
    make, call = CALLS[call]
    fast = make(weight_dtype=dtype, weight_only=True) if dtype else make()
    before, twin = flat(call(fast)), copy.deepcopy(fast)
    change(fast)
    after = flat(call(fast))
    # With weight_only the float32 weights that int8's stand for give the same.
    torch.testing.assert_close(after, flat(call(fast.to_torch())), rtol=0, atol=2e-5)
    assert max((a - b).abs().max() for a, b in zip(after, before, strict=True)) > 1e-3
    for got, wanted in zip(flat(call(twin)), before, strict=True):
        assert got.equal(wanted)  # a copy keeps what it was a copy of


PLAIN_OPTIONS = [
    {},
    {"bias": False},
    {"proj_size": 3},
    {"batch_first": True, "dropout": 0.5},
    {"weight_dtype": torch.bfloat16},
    {"weight_dtype": INT8},
    {"weight_dtype": INT8, "weight_only": True, "proj_size": 3, "batch_first": True},
]


@needs_library
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:dropout option")
@pytest.mark.parametrize("options", PLAIN_OPTIONS, ids=str)
@pytest.mark.parametrize("T", [0, 1, 6])
def test_plain_inference_is_the_longer_ways(T, options, monkeypatch):
    fast = FastLSTM(5, 7, **options).eval()
    hx = torch.randn(1, 2, options.get("proj_size", 7)), torch.randn(1, 2, 7)
    x = torch.randn(2, T, 5) if fast.batch_first else torch.randn(T, 2, 5)
    for given in ((x,), (x, hx), (torch.randn(T, 5),), (torch.randn(T, 5), tuple(s[:, 0] for s in hx))):
        short = shortcuts.plain_inference(fast, *given, *(None,) * (2 - len(given)))
        assert short is not None and type(short) is tuple
        with monkeypatch.context() as patch:
            patch.setattr(lstm, "plain_inference", lambda *_: None)
            longer = fast(*given)
        torch.testing.assert_close(short, longer, rtol=0, atol=0)
        assert short[0].stride() == longer[0].stride()


@needs_library
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_is_not_plain_inference():
    """For each, the longer way decides; a call of one layer in evaluation alone goes this way."""

    def served(module, *given):
        return shortcuts.plain_inference(module.eval(), *given) is not None

    x, hx = torch.randn(3, 2, 5), (torch.randn(1, 2, 7), torch.randn(1, 2, 7))
    plain = FastLSTM(5, 7)
    assert served(plain, x, hx)
    assert shortcuts.plain_inference(plain.train(), x, None) is None
    for options in (
        {"num_layers": 2},
        {"bidirectional": True},
        {"layer_norm": True},
        {"zoneout": 0.1},
        {"batch_first_states": True},
        {"return_layer_outputs": True},
        {"backend": "reference"},
        {"dtype": torch.float64},
    ):
        assert not served(FastLSTM(5, 7, **options), x, None), options

    class Tagged(torch.Tensor):
        pass

    for wrong in (
        (x.double(), None),
        (x.as_subclass(Tagged), None),
        (x.to("meta"), None),
        (torch.nested.nested_tensor([x[:, 0], x[:2, 1]]), None),
        (x[..., :4], None),
        (x[None], None),
        (x, [*hx]),
        (x, (hx[0], None)),
        (x, (hx[0], hx[1][:, :1])),
        (x, (hx[0].as_subclass(Tagged), hx[1])),
        (x, hx[0]),
    ):
        assert not served(plain, *wrong)
    pruned = copy.deepcopy(plain)
    pruned.weight_ih_l0 = nn.Parameter(plain.weight_ih_l0.double())
    assert not served(pruned, x, None)
    parametrized = copy.deepcopy(plain)
    nn.utils.parametrizations.weight_norm(parametrized, "weight_hh_l0")
    assert not served(parametrized, x, None)
    with torch.enable_grad():
        assert not served(plain, x, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert not served(plain, x, None)
    with torch.autograd.forward_ad.dual_level():
        assert not served(plain, x, None)
    under_vmap = []
    torch.func.vmap(lambda each: (under_vmap.append(served(plain, x, None)), each)[1])(x)
    assert under_vmap == [False]


@pytest.fixture
def served(monkeypatch):
    """How often `int8_call` has served; with `served.wanted` False it gives nothing."""

    class Served:
        count, wanted = 0, True

        def __call__(self, *args, **options):
            results = op(*args, **options) if self.wanted else []
            self.count += bool(results)
            return results

        def both(self, call):
            """What `call` gives by the op, and by the general way."""
            before = self.count
            short, self.wanted = call(), False
            assert self.count == before + 1
            general, self.wanted = call(), True
            assert self.count == before + 1
            return short, general

    op, found = int8_calls.int8_call, Served()
    monkeypatch.setattr(int8_calls, "int8_call", found)
    return found


# T, N (None: unbatched), I, H, options.
INT8_CASES = [
    (1, 1, 3, 5, {"num_layers": 2, "bidirectional": True}),
    (4, None, 17, 33, {"bias": False}),
    (3, 8, 40, 31, {"proj_size": 7, "num_layers": 2, "batch_first": True}),
    (2, 5, 64, 32, {"num_layers": 2, "proj_size": 31, "bidirectional": True}),
    (0, 2, 4, 6, {"batch_first": True}),
    (5, 0, 4, 6, {}),
]


@needs_library
@torch.no_grad()
@pytest.mark.parametrize("weight_only", [False, True])
@pytest.mark.parametrize("case", INT8_CASES, ids=str)
def test_an_int8_stack_is_the_general_ways(case, weight_only, served):
    T, N, I, H, options = case
    fast = FastLSTM(I, H, weight_dtype=INT8, weight_only=weight_only, **options)
    rows = () if N is None else (N,)
    states = fast.num_layers * (1 + fast.bidirectional), *rows
    hx = torch.randn(*states, fast.proj_size or H), torch.randn(*states, H)
    x = torch.randn(*((N, T) if fast.batch_first else (T, *rows)), 2 * I)[..., ::2]
    for given in ((x,), (x, hx), (x, [*hx])):
        short, general = served.both(lambda given=given: fast(*given))
        torch.testing.assert_close(short, general, rtol=0, atol=0)
        assert short[0].stride() == general[0].stride() or not x.numel()
    lengths = torch.randint(0, T + 1, rows or (1,))
    reset_mask = torch.rand(x.shape[:-1]) < 0.3
    masks = [{"lengths": lengths}, {"reset_mask": reset_mask}, {"return_cell_sequence": True}]
    masks.append({k: v for options in masks for k, v in options.items()})
    masks.append(
        {"lengths": lengths.repeat_interleave(2)[::2], "reset_mask": torch.stack([reset_mask] * 2, -1)[..., 0]}
    )
    if N is None:
        masks.append({"lengths": torch.tensor(min(2, T))})
    for options in masks:
        short, general = served.both(lambda options=options: fast(x, hx, **options))
        torch.testing.assert_close(short, general, rtol=0, atol=0)
        pairs = zip(short[::2], general[::2], strict=True)  # the output and the cells
        assert all(a.stride() == b.stride() for a, b in pairs) or not x.numel()


@needs_library
@torch.no_grad()
@pytest.mark.parametrize("weight_only", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("N", [None, 0, 1, 9])
def test_int8_steps_and_cells_are_the_general_ways(N, bias, weight_only, served):
    rows = () if N is None else (N,)
    settings = {"bias": bias, "weight_dtype": INT8, "weight_only": weight_only}
    x = torch.randn(*rows, 7)
    for proj_size in (0, 6):
        fast = FastLSTM(7, 20, 2, proj_size=proj_size, **settings)
        state = torch.randn(2, *rows, proj_size or 20), torch.randn(2, *rows, 20)
        for given in ((x,), (x, state)):
            short, general = served.both(lambda given=given, fast=fast: fast.step(*given))
            torch.testing.assert_close(short, general, rtol=0, atol=0)
    cell = FastLSTMCell(7, 20, **settings)
    state = torch.randn(*rows, 20), torch.randn(*rows, 20)
    for given in ((x,), (x, state)):
        short, general = served.both(lambda given=given: cell(*given))
        torch.testing.assert_close(short, general, rtol=0, atol=0)


@needs_library
@torch.no_grad()
def test_what_an_int8_call_does_not_take(served):
    """Hooks, tools that look at each op, and arguments that do not fit."""
    fast, x = FastLSTM(4, 6, weight_dtype=INT8), torch.randn(3, 2, 4)
    cell = FastLSTMCell(4, 6, weight_dtype=INT8)
    state = torch.randn(2, 6), torch.randn(2, 6)
    with FlopCounterMode(display=False) as counter:
        fast(x)
        fast.step(x[0])
    assert counter.get_total_flops() == 2 * (3 + 1) * 2 * 24 * 10
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        assert cell(x[0], state)[0].dtype == torch.float32
    hook = fast.register_forward_hook(lambda *args: seen.append(args))
    fast.step(x[0])
    assert served.count == 1 and len(seen) == 1  # by the module's own call, which the op serves
    hook.remove()
    assert served.count == 1
    for module, args in (
        (fast, (x, (state[0], state[1]))),
        (fast, (x, (state[0][None], state[1][None].double()))),
        (fast, (x, (state[0][None], state[1][None, :1]))),
        (fast, (x.double(),)),
        (cell, (x[0], (state[0][:, :5], state[1]))),
        (cell, (x[0, :, :3], state)),
        (cell, (x[None], state)),
        (fast, (torch.randn(3, 2, 3),)),  # as many bytes in the packed weights as 4
        (fast.step, (torch.randn(2, 3),)),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            module(*args)
    assert served.count == 1
    for options, words in (
        ({"lengths": torch.tensor([1, 4])}, "lengths: got values from 1 to 4"),
        ({"lengths": torch.tensor([-1, 3])}, "lengths: got values from -1 to 3"),
        ({"lengths": torch.tensor([1, 2, 3])}, "lengths: got shape"),
        ({"lengths": torch.tensor(1)}, "lengths: got shape"),
        ({"lengths": [1, 2]}, "lengths: got list"),
        ({"reset_mask": torch.zeros(2, 3, dtype=torch.bool)}, "reset_mask: got shape"),
        ({"reset_mask": torch.zeros(3, 2)}, "reset_mask: got dtype"),
    ):
        with pytest.raises(ValueError, match=words):
            fast(x, **options)
    assert served.count == 1
    lengths = torch.tensor([1, 3])  # of other integers the general way makes int64
    torch.testing.assert_close(fast(x, lengths=lengths.int()), fast(x, lengths=lengths), rtol=0, atol=0)
    assert served.count == 2
    with torch.enable_grad(), pytest.raises(RuntimeError, match="input requires one"):
        cell(x[0].requires_grad_(), state)


@needs_library
@torch.no_grad()
def test_the_op_of_int8_calls_is_sound():
    fast, cell = FastLSTM(5, 7, 2, weight_dtype=INT8), FastLSTMCell(5, 7, weight_dtype=INT8)
    stacked, hx = [*fast.buffers()], (torch.randn(2, 3, 7), torch.randn(2, 3, 7))
    for args, options in (
        ((X, *hx, stacked, 5), {"layers": 2}),
        ((X.transpose(0, 1), None, None, stacked, 5), {"layers": 2, "batch_first": True}),
        ((X[:, 0], None, None, stacked, 5), {"layers": 2}),
        ((X[0], *hx, stacked, 5), {"layers": 2, "step": True}),
        ((X[0, 0], None, None, stacked, 5), {"layers": 2, "step": True, "weight_only": True}),
        ((X[0], *STATE, [*cell.buffers()], 5), {"cell": True}),
        ((X[0, 0], None, None, [*cell.buffers()], 5), {"cell": True}),
        (
            (X.transpose(0, 1), *hx, stacked, 5),
            {
                "layers": 2,
                "batch_first": True,
                "lengths": torch.tensor([2, 1, 0]),
                "reset_mask": torch.zeros(3, 2, dtype=torch.bool),
                "return_cells": True,
            },
        ),
        ((X[:, 0], None, None, stacked, 5), {"layers": 2, "lengths": torch.tensor(1), "return_cells": True}),
    ):
        torch.library.opcheck(
            torch.ops.fastlstm.int8_call.default,
            args,
            options,
            test_utils=("test_schema", "test_faketensor"),
        )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, INT8])
def test_what_is_elsewhere_is_named(dtype):
    """The ops of whole calls look at devices themselves, and give nothing."""
    fast, cell = FastLSTM(4, 6, weight_dtype=dtype), FastLSTMCell(4, 6, weight_dtype=dtype)
    x, state = torch.randn(1, 2, 4), (torch.randn(1, 2, 6), torch.randn(1, 2, 6))
    there = state[0].to("meta"), state[1]
    elsewhere = copy.deepcopy(fast).to("meta"), copy.deepcopy(cell).to("meta")
    for call in (
        lambda: fast(x, there),
        lambda: fast.step(x[0], there),
        lambda: cell(x[0], (there[0][0], there[1][0])),
        lambda: elsewhere[0](x),
        lambda: elsewhere[0].step(x[0], state),
        lambda: elsewhere[1](x[0]),
    ):
        with pytest.raises((RuntimeError, ValueError), match=r"meta|device"):
            call()


@torch.no_grad()
def test_settings_may_change_between_calls():
    fast, plain = FastLSTM(5, 7, 2), nn.LSTM(5, 7, 2)
    plain.load_state_dict(fast.state_dict())
    for module in (fast, plain):
        module(X)
        module.batch_first = True
    torch.testing.assert_close(fast(X), plain(X))
    fast.batch_first_states = True
    assert fast(X)[1][0].shape == (2, 2, 7)
    fast.return_layer_outputs = True
    assert len(fast(X)) == 3
    fast.return_layer_outputs = False
    fast.zoneout = 0.5
    assert not fast(X)[0].equal(plain(X)[0])
    fast.zoneout, fast.dropout, plain.dropout = 0.0, 0.5, 0.5
    torch.manual_seed(3)
    dropped = fast(X)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(dropped, plain(X)[0])
    fast.eval(), plain.eval()
    torch.testing.assert_close(fast(X)[0], plain(X)[0])
