"""Weight matrices in bfloat16 beside float32 tensors: results are those of the rounded weights.

tests/cpu/test_kernels_isa.py runs this file on each instruction set that the machine has.
"""

import copy

import pytest
import torch
from pairs import ignore_onednn, needs_library, one_thread  # noqa: F401  (a fixture)
from torch import nn
from torch.nn.utils import prune

from fastlstm import FastLSTM, FastLSTMCell, convert, functional
from fastlstm.backends import native
from fastlstm.nn import weight_storage
from fastlstm.stack import whole
from fastlstm.testing import compare

pytestmark = [needs_library, ignore_onednn]

STORED = torch.bfloat16
# Tiles make three products of a state's parts and a weight in bfloat16, six of one in float32, and
# weights as they lie are two to a lane where they are bfloat16; else the sums are the same to the
# last bit.
TILES = native.load() is None and native.cpu_isa().startswith("amx")
# T, N (None: unbatched), I, H, and what else: a step or a few from the weights as they lie, gates
# at once, gates in chunks; rows that pairs of weights serve, and more; weights in a near cache
# and streamed; an uneven number of terms.
CASES = [
    (1, 1, 3, 5, {"num_layers": 2, "bidirectional": True}),
    (3, 8, 40, 31, {"proj_size": 7}),
    (4, None, 17, 33, {"bias": False}),
    (2, 5, 64, 32, {"num_layers": 2, "proj_size": 31}),
    (6, 2, 18, 187, {"num_layers": 2, "batch_first": True}),
    (5, 3, 16, 190, {"proj_size": 183, "bidirectional": True}),
    (5, 1, 30, 650, {"bias": False}),
    (5, 9, 30, 331, {}),
    (40, 30, 5, 70, {"bidirectional": True}),
    (300, 40, 20, 64, {}),
]


def problem(T, N, I, H, options):
    stored = FastLSTM(I, H, weight_dtype=STORED, **options)
    rows = () if N is None else (N,)
    lead = (N, T) if stored.batch_first else (T, *rows)
    states = stored.num_layers * (1 + stored.bidirectional), *rows
    hx = torch.randn(*states, stored.proj_size or H), torch.randn(*states, H)
    return stored, stored.to_torch(), torch.randn(*lead, I), hx


@pytest.fixture
def given(monkeypatch):
    """The dtypes of weight_hh that the whole stack's op took."""
    dtypes, pair_ = [], whole.PAIRS["lstm"]

    def noted(x, h0, c0, weights, **options):
        results = pair_.forward(x, h0, c0, weights, **options)
        dtypes.extend([weights[1].dtype] if results else [])
        return results

    monkeypatch.setitem(whole.PAIRS, "lstm", pair_._replace(forward=noted))
    return dtypes


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_those_of_the_rounded_weights(case, given):
    stored, lstm, x, hx = problem(*case)
    assert {w.dtype for w in lstm.parameters()} == {torch.float32}
    widened = FastLSTM.from_torch(lstm)
    # A few steps are made from the weights as they lie, in another order of sums.
    otherwise = TILES or x.shape[stored.batch_first and x.dim() == 3] <= 4
    if otherwise:
        compare(stored, lstm, x, hx, gradients=False)
        compare(stored, lstm, x, gradients=False)
    else:
        torch.testing.assert_close(stored(x, hx), widened(x, hx), rtol=0, atol=0)
        torch.testing.assert_close(stored(x), widened(x), rtol=0, atol=0)
    given.clear()
    if x.dim() == 3:
        lead = x.transpose(0, 1) if stored.batch_first else x
        masks = {"lengths": torch.randint(lead.shape[0] + 1, lead.shape[1:2])}
        masks["reset_mask"] = torch.rand(x.shape[:2]) < 0.2
        results = [m(x, hx, return_cell_sequence=True, **masks) for m in (stored, widened)]
        exact = {"rtol": 1e-4, "atol": 1e-5} if otherwise else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(*results, **exact)
        assert given == [STORED, torch.float32]


@torch.no_grad()
@pytest.mark.parametrize("N", [None, 1, 8, 9])
@pytest.mark.parametrize("H", [5, 48])
def test_steps_and_cells(N, H):
    lead = () if N is None else (N,)
    stored = FastLSTM(7, H, 2, weight_dtype=STORED)
    lstm, x = stored.to_torch(), torch.randn(*lead, 7)
    state = torch.randn(2, *lead, H), torch.randn(2, *lead, H)
    y, (h, c) = stored.step(x, state)
    expected, (h_n, c_n) = lstm(x.unsqueeze(0), state)
    torch.testing.assert_close((y, h, c), (expected[0], h_n, c_n), rtol=1e-5, atol=2e-6)
    cell = FastLSTMCell(7, H, weight_dtype=STORED)
    state = torch.randn(*lead, H), torch.randn(*lead, H)
    torch.testing.assert_close(cell(x, state), cell.to_torch()(x, state), rtol=1e-5, atol=2e-6)


def test_gradients_are_those_of_the_rounded_weights(given):
    stored, lstm, x, hx = problem(5, 3, 4, 6, {"num_layers": 2})
    results = []
    for module in (stored, FastLSTM.from_torch(lstm)):
        leaf = x.clone().requires_grad_()
        module(leaf, hx)[0].square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in module.parameters())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=0)
    assert given and STORED not in given
    cell = FastLSTMCell(4, 6, weight_dtype=STORED)
    cell(x[0])[0].sum().backward()
    assert cell.weight_hh.grad.dtype == STORED and cell.bias_hh.grad.dtype == torch.float32


@torch.no_grad()
def test_stateless():
    stored, _, x, hx = problem(6, 3, 4, 5, {"bidirectional": True})
    weights = [[getattr(stored, name) for name in stored._flat_weights_names[k : k + 4]] for k in (0, 4)]
    result = functional.lstm(x, weights, hx, bidirectional=True)
    torch.testing.assert_close(result, stored(x, hx), rtol=0, atol=0)
    assert functional.lstm(x, weights, hx, bidirectional=True, backend="reference")[0].dtype == x.dtype
    weights[1][1] = weights[1][1].float()
    with pytest.raises(ValueError, match=r"weights\[1\].weight_hh: got dtype torch.float32"):
        functional.lstm(x, weights, hx, bidirectional=True)


@torch.no_grad()
def test_variants_and_other_backends_widen(given):
    x = torch.randn(4, 2, 3)
    for options in ({"zoneout": 0.25}, {"layer_norm": True}, {"backend": "reference"}):
        stored = FastLSTM(3, 5, weight_dtype=STORED, **options).eval()
        widened = copy.deepcopy(stored).float()
        assert widened.weight_dtype is None
        torch.testing.assert_close(stored(x), widened(x), rtol=0, atol=0)
    assert STORED not in given


@pytest.mark.filterwarnings("ignore:.*trace")
def test_autocast_traces_and_compiled_calls():
    stored, _, x, hx = problem(4, 2, 3, 5, {})
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert stored(x, hx)[0].dtype == torch.bfloat16
    with torch.no_grad():
        expected = stored(x, hx)
        traced = torch.jit.trace(stored, (x, hx))
        torch.testing.assert_close(traced(x, hx), expected, rtol=1e-5, atol=2e-6)
        compiled = torch.compile(stored, backend="aot_eager")
        torch.testing.assert_close(compiled(x, hx), expected, rtol=1e-5, atol=2e-6)


def test_what_is_stored_and_what_changes_it():
    lstm = nn.LSTM(3, 4, 2, proj_size=2)
    fast = FastLSTM.from_torch(lstm, weight_dtype=STORED)
    for name, weight in fast.named_parameters():
        assert weight.dtype == (STORED if name.startswith("weight_") else torch.float32)
        original = getattr(lstm, name)
        assert ((weight - original).abs() <= 2**-8 * original.abs()).all()
    assert "weight_dtype=torch.bfloat16" in repr(fast)
    again = FastLSTM.from_torch(fast)
    assert again.weight_dtype == STORED and again.weight_hr_l1.dtype == STORED
    assert FastLSTM.from_torch(fast, weight_dtype=None).weight_hh_l0.dtype == torch.float32
    twin = FastLSTM(3, 4, 2, proj_size=2, weight_dtype=STORED)
    twin.load_state_dict(lstm.state_dict())
    assert torch.equal(twin.weight_hh_l1, fast.weight_hh_l1)
    kept = fast.weight_hh_l0
    fast.weight_dtype = None
    assert fast.weight_hh_l0 is kept and kept.dtype == torch.float32
    fast.weight_dtype = STORED
    for cast, dtype in (("float", torch.float32), ("double", torch.float64), ("bfloat16", STORED)):
        changed = getattr(copy.deepcopy(fast), cast)()
        assert changed.weight_dtype is None
        assert {p.dtype for p in changed.parameters()} == {dtype}
    assert copy.deepcopy(fast).to("cpu").weight_dtype == STORED
    model = convert(nn.Sequential(nn.LSTM(3, 4), nn.LSTMCell(3, 4)), weight_dtype=STORED)
    assert model[0].weight_hh_l0.dtype == model[1].weight_hh.dtype == STORED


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weight_dtype: got torch\.float16, expected"):
        FastLSTM(3, 4, weight_dtype=torch.float16)
    with pytest.raises(ValueError, match=r"weight_dtype: weight_ih_l0 is torch\.float64"):
        FastLSTM(3, 4, dtype=torch.float64, weight_dtype=STORED)
    with pytest.raises(ValueError, match=r"weight_dtype: weight_ih_l0 is torch\.float64"):
        FastLSTM.from_torch(nn.LSTM(3, 4).double(), weight_dtype=STORED)
    pruned = prune.l1_unstructured(FastLSTM(3, 4), "weight_hh_l0", 0.5)
    with pytest.raises(ValueError, match=r"weight_dtype: weight_hh_l0 is not a parameter"):
        pruned.weight_dtype = STORED
    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": nn.LSTM(3, 4).double()})
    with pytest.raises(ValueError, match=r"weight_dtype: b\.weight_ih_l0 is torch\.float64"):
        convert(model, weight_dtype=STORED)
    assert type(model["a"]) is nn.LSTM
    x = torch.randn(2, 1, 3)
    for bias in (True, False):
        # Neither a module that was cast by mistake nor an input that was: as nn.LSTM's.
        plain, stored = (FastLSTM(3, 4, bias=bias, **o) for o in ({}, {"weight_dtype": STORED}))
        for module, wrong in ((plain.bfloat16(), x), (stored, x.bfloat16())):
            for guard in (torch.no_grad(), torch.enable_grad()):
                with guard, pytest.raises(ValueError, match="does not match weight dtype"):
                    module(wrong)
    weights = [getattr(stored, name) for name in weight_storage.matrix_names(stored)]
    with pytest.raises(RuntimeError, match="have no backward"):
        torch.ops.fastlstm.lstm_layer_forward(
            x, *(torch.zeros(1, 1, 4),) * 2, *weights, *(None,) * 10, False, True, False
        )
