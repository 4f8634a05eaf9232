"""FastLSTMCell beside nn.LSTMCell."""

import copy
import itertools
import pickle

import pytest
import torch
from pairs import on_cpu, one_thread  # noqa: F401  (one_thread is a fixture)
from torch import nn

from fastlstm import FastLSTMCell
from fastlstm.testing import judge, map_tensors, relative_errors

pytestmark = pytest.mark.usefixtures("poisoned_empty")
backends = pytest.mark.parametrize("backend", [on_cpu, "reference"])

N, I, H = 3, 4, 6


def pair(backend="auto", **options):
    cell = nn.LSTMCell(I, H, **options)
    fast = FastLSTMCell(I, H, backend=backend, **options)
    fast.load_state_dict(cell.state_dict())
    return cell, fast


def run(cell, x, hx, weights):
    """Results and gradients of a fixed sum of them, by name."""
    x, hx = map_tensors(lambda t: t.detach().requires_grad_(), (x, hx))
    h, c = cell(x, hx)
    leaves = {"d_input": x, **{f"d_{k}": p for k, p in cell.named_parameters()}}
    leaves |= dict(zip(("d_h0", "d_c0"), hx, strict=True)) if hx else {}
    grads = torch.autograd.grad((h, c), list(leaves.values()), [w.to(h) for w in weights])
    return {"h": h.detach(), "c": c.detach(), **dict(zip(leaves, grads, strict=True))}


@backends
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "zeros"])
def test_results_and_gradients(given, batched, bias, dtype, backend):
    dtype = getattr(torch, dtype)
    cell, fast = pair(backend, dtype=dtype, bias=bias)
    lead = (N,) if batched else ()
    errors = {}
    for _ in range(4):  # nn.LSTMCell's error over four problems: that of one is a matter of luck
        x = torch.randn(*lead, I).to(dtype)
        hx = tuple(torch.randn(*lead, H).to(dtype) for _ in "hc") if given else None
        weights = [torch.randn(*lead, H).to(dtype) for _ in "hc"]
        wide = run(copy.deepcopy(cell).double(), *to(torch.float64, x, hx), weights)
        # float64 has no wider type: see fastlstm.testing
        low = torch.float32 if dtype == torch.float64 else dtype
        units = torch.finfo(dtype).eps / torch.finfo(low).eps
        theirs = run(copy.deepcopy(cell).to(low), *to(low, x, hx), weights)
        for name, error in relative_errors(theirs, wide).items():
            errors[name] = max(errors.get(name, 0), units * error)
    judge(run(fast, x, hx, weights), wide, errors, dtype)


def to(dtype, *values):
    return map_tensors(lambda t: t.to(dtype), values)


@backends
def test_gradcheck(backend):
    _, fast = pair(backend, dtype=torch.float64)
    leaves = [torch.randn(N, size, dtype=torch.float64) for size in (I, H, H)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda x, h, c: fast(x, (h, c)), leaves, fast_mode=True)


@pytest.mark.parametrize("options", [{}, {"bias": False}])
def test_it_is_an_lstm_cell_of_the_same_parts(options):
    weights = []
    for cls in (nn.LSTMCell, FastLSTMCell):
        torch.manual_seed(3)
        weights.append(cls(I, H, **options))
    cell, fast = weights
    assert isinstance(fast, nn.LSTMCell)
    assert repr(fast) == repr(cell).replace("LSTMCell(", "FastLSTMCell(")
    assert repr(FastLSTMCell(I, H, backend="reference")).endswith("backend='reference')")
    assert list(fast.state_dict()) == list(cell.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fast.parameters(), cell.parameters(), strict=True))
    assert (fast.bias_ih is None) == (cell.bias_ih is None)
    assert FastLSTMCell.__doc__ != nn.LSTMCell.__doc__
    x = torch.randn(N, I)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(twin) is FastLSTMCell
        torch.testing.assert_close(twin(x), fast(x))


def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


X, S = torch.zeros(N, I), torch.zeros(N, H)
ODD = {
    "rank-0": (torch.zeros(()), None),
    "rank-3": (torch.zeros(1, N, I), None),
    "list": ([0.0], None),
    "width": (torch.zeros(N, I + 1), None),
    "width-unbatched": (torch.zeros(I + 1), None),
    "float64": (X.double(), None),
    "int64": (X.long(), None),
    "h-width": (X, (torch.zeros(N, H + 1), S)),
    "c-width": (X, (S, torch.zeros(N, H + 1))),
    "h-batch": (X, (torch.zeros(N + 1, H), S)),
    "c-batch": (X, (S, torch.zeros(N + 1, H))),
    "h-rank-3": (X, (S[None], S)),
    "c-dtype": (X, (S, S.double())),
    "h-width-unbatched": (X[0], (torch.zeros(H + 1), S[0])),
    "stacked-unbatched": (X[0], torch.stack([S[0], S[0]])),
}
# With some of these torch's kernel reads what is not there, or ends the interpreter.
OWN = {
    "h-rank-1": (X, (S[0], S[0]), f"hx[0] (h): got shape ({H},), expected (N, H) beside an input"),
    "c-rank-1": (X, (S, S[0]), f"hx[1] (c): got shape ({H},), expected (N, H)"),
    "unbatched-2-D": (X[0], (S, S), f"hx[0] (h): got shape ({N}, {H}), expected (H,)"),
    "unbatched-square": (X[0], (torch.zeros(H, H),) * 2, "hx[0] (h): got shape"),
    "unbatched-stacked-square": (X[0], torch.zeros(2, H, H), "hx: got Tensor, expected a pair"),
    "h-dtype": (X, (S.double(), S), "hx[0] (h): got dtype torch.float64, expected the input's"),
    "h-device": (X, (S.to("meta"), S), "hx[0] (h): on meta, expected the input's device, cpu"),
    "c-device": (X, (S, S.to("meta")), "hx[1] (c): on meta, expected the input's device, cpu"),
    "one-state": (X, (S,), "hx: got (Tensor), expected a pair of tensors"),
    "three-states": (X, (S, S, S), "hx: got (Tensor, Tensor, Tensor), expected a pair"),
    "none-states": (X, (None, None), "hx: got (None, None), expected a pair of tensors (h0, c0);"),
    "tensor": (X, S, "hx: got Tensor, expected a pair"),
    "number": (X, 1, "hx: got int, expected a pair"),
}


@pytest.mark.parametrize("case", ODD)
def test_refuses_or_takes_as_torch(case):
    cell, fast = pair()
    expected = outcome(lambda: cell(*ODD[case]))
    found = outcome(lambda: fast(*ODD[case]))
    if isinstance(expected[0], torch.Tensor):
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("case", OWN)
def test_refuses_in_its_own_words(case, backend):
    input, hx, words = OWN[case]
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError) as error:
            FastLSTMCell(I, H, backend=backend)(input, hx)
        assert words in str(error.value)


@pytest.mark.parametrize("args", [(3,), (-1, 4), (3, -1), (3.0, 4)])
def test_constructor_refuses_as_torch(args):
    expected = outcome(lambda: nn.LSTMCell(*args))
    found = outcome(lambda: FastLSTMCell(*args))
    assert found[0] is expected[0]


def test_constructor_refuses_an_unknown_backend():
    with pytest.raises(ValueError, match="backend: got 'fast'"):
        FastLSTMCell(I, H, backend="fast")


@pytest.mark.parametrize("sizes", [(I, 0), (0, H)], ids=["H0", "I0"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_sizes_of_zero(sizes):
    cell = nn.LSTMCell(*sizes)
    fast = FastLSTMCell.from_torch(cell)
    x = torch.randn(N, sizes[0])
    torch.testing.assert_close(fast(x), cell(x))


def test_no_rows():
    cell, fast = pair()
    assert [t.shape for t in fast(X[:0])] == [t.shape for t in cell(X[:0])]


@backends
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(wanted, backend):
    """Products of rounded factors; where c is float32, it and the results stay so."""
    cell, fast = pair(backend)
    rounded = copy.deepcopy(fast).to(wanted)
    wide = copy.deepcopy(rounded).float()
    for dtypes in itertools.product((torch.float32, wanted), repeat=3):
        x, h, c = (torch.randn(N, k).to(d) for k, d in zip((I, H, H), dtypes, strict=True))
        with torch.autocast("cpu", wanted):
            expected_dtypes = [t.dtype for t in cell(x, (h, c))]
            found = fast(x, (h, c))
            assert [t.dtype for t in fast(x)] == [t.dtype for t in cell(x)]
        x, h = x.to(wanted), h.to(wanted)
        module, x, h = (rounded, x, h) if c.dtype == wanted else (wide, x.float(), h.float())
        expected = module(x, (h, c))
        assert [t.dtype for t in found] == expected_dtypes
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@backends
def test_replaced_weights_are_seen(backend):
    cell, fast = pair(backend)
    x = torch.randn(N, I)
    fast(x)
    for module in (cell, fast):
        module.weight_hh.data.mul_(2)
        module.weight_ih = nn.Parameter(torch.ones(4 * H, I))
    hx = torch.randn(N, H), torch.randn(N, H)
    torch.testing.assert_close(fast(x, hx), cell(x, hx))


def test_results_share_no_memory():
    h, c = FastLSTMCell(I, H)(X)
    kept = c.clone()
    h.detach().fill_(7)
    assert torch.equal(c, kept)
