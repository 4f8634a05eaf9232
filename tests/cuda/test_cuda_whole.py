"""A whole stack as one pair of ops on CUDA, run on the CPU by tests/simt: results and gradients
within the budget of nn.LSTM, or of plain torch where nn.LSTM has no such option.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from cuda_kinds import family
from masked import MASKS, Masked, masks_of, on_reference
from pairs import ignore_onednn, pair

from fastlstm import FastLSTM, functional, precision
from fastlstm.backends import table
from fastlstm.nn import inputs
from fastlstm.stack import between, whole
from fastlstm.stack import run as stack_run
from fastlstm.testing import compare
from fastlstm.weights import STORED

pytestmark = [
    pytest.mark.skipif(family.load() is not None, reason=str(family.load())),
    pytest.mark.usefixtures("poisoned_empty"),
    ignore_onednn,
]

# T, N (None: unbatched), I, H, and what else.
CASES = [
    (1, 1, 3, 5, {"num_layers": 2, "bidirectional": True}),
    (3, None, 8, 16, {"bias": False}),
    (2, 5, 9, 17, {"proj_size": 7, "bidirectional": True, "num_layers": 2, "batch_first": True}),
    (4, 2, 6, 24, {"batch_first": True, "num_layers": 3}),
    (3, 9, 4, 20, {"proj_size": 6, "bias": False}),
    (3, None, 5, 8, {"bidirectional": True, "batch_first": True}),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Which families of kernels: those that keep the weights on the chip, and those that do not.
KERNELS = ["auto", "step"]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """The backend "cuda" on CPU tensors, with the products of a GPU; gives the calls that the pair
    has served, each as (whether a tape was kept, kernels launched)."""
    served, simt = [], whole.PAIRS["simt"]

    def counted(*args, **options):
        before = family.launches()
        results = simt.forward(*args, **options)
        taped = options.get("needs") is not None
        served.extend([(taped, family.launches() - before)] if results else [])
        return results

    row = table.Backend("cuda", "simt", lambda call: None)
    monkeypatch.setattr(table, "TABLE", (row, *(r for r in table.TABLE if r.name != "cuda")))
    monkeypatch.setattr(precision, "_WIDE_CPU_PRODUCTS", False)
    monkeypatch.setitem(whole.PAIRS, "simt", simt._replace(forward=counted))
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield served
    torch.backends.cudnn.rnn.fp32_precision = before


def problem(T, N, I, H, options, dtype):
    """nn.LSTM, a FastLSTM of its weights, x and (h0, c0)."""
    lstm, fast = pair(I, H, dtype=dtype, **options)
    fast.backend = "cuda"
    rows = () if N is None else (N,)
    lead = (N, T) if lstm.batch_first and N is not None else (T, *rows)
    states = lstm.num_layers * (1 + lstm.bidirectional), *rows
    hx = torch.randn(*states, lstm.proj_size or H), torch.randn(*states, H)
    return lstm, fast, torch.randn(*lead, I).to(dtype), tuple(s.to(dtype) for s in hx)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients_are_within_the_budget(case, dtype, kernels, on_cpu, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    lstm, fast, x, hx = problem(*case, dtype)
    compare(fast, lstm, x, hx)
    compare(fast, lstm, x)
    with torch.no_grad():
        compare(fast, lstm, x, gradients=False)
    assert [taped for taped, _ in on_cpu] == [True, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("names", MASKS, ids=str)
@pytest.mark.parametrize("case", CASES[2:4] + CASES[5:], ids=str)
def test_masks_cells_and_dropout(case, names, dtype, on_cpu):
    _, fast, x, hx = problem(*case, dtype)
    fast.dropout = 0.5 if fast.num_layers > 1 else 0.0
    masks = masks_of(names, fast, x)
    compare(*(Masked(m, masks) for m in (fast, on_reference(fast))), x, hx)
    compare(*(Masked(m, masks) for m in (fast, on_reference(fast))), x)
    assert len(on_cpu) == 2


@pytest.mark.parametrize("case", CASES[2:5], ids=str)
def test_padding_may_hold_anything(case):
    _, fast, x, hx = problem(*case, torch.float64)
    steps, rows = (1, 0) if fast.batch_first else (0, 1)
    lengths = torch.randint(0, x.shape[steps], (x.shape[rows],))
    padding = torch.arange(x.shape[steps])[:, None] >= lengths
    padding = (padding.t() if fast.batch_first else padding).unsqueeze(-1)
    found = []
    for value in (0.0, float("nan")):
        given = x.masked_fill(padding, value).requires_grad_()
        output, states = fast(given, hx, lengths=lengths)
        loss = output.sum() + sum(s.square().sum() for s in states)
        found.append(torch.autograd.grad(loss, [given, *fast.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("case", [CASES[2], CASES[3]], ids=str)
def test_lengths_are_clamped(case, on_cpu):
    """As where nobody looks at them."""
    _, fast, x, hx = problem(*case, torch.float64)
    rows, steps = x.shape[:2]
    wild = torch.tensor([-3, steps + 2, 1, -1, steps])[:rows]
    found = []
    for lengths in (wild, wild.clamp(0, steps)):
        output, states = fast(x, hx, lengths=lengths)
        loss = output.sum() + sum(s.square().sum() for s in states)
        found.append([output, *states, *torch.autograd.grad(loss, list(fast.parameters()))])
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert len(on_cpu) == 2


def test_gradients_are_given_for_what_asks(on_cpu):
    _, fast, x, hx = problem(4, 3, 5, 8, {"num_layers": 3, "bidirectional": True}, torch.float64)
    every = dict(fast.named_parameters())

    def gradients(names):
        for name, p in every.items():
            p.requires_grad_(name in names)
        output, states = fast(x, hx)
        loss = output.square().sum() + states[1].sum()
        return dict(zip(names, torch.autograd.grad(loss, [every[n] for n in names]), strict=True))

    whole_of = gradients(list(every))
    for names in (["weight_hh_l2"], ["bias_hh_l1_reverse", "weight_ih_l2"], ["bias_ih_l0"]):
        for name, found in gradients(names).items():
            torch.testing.assert_close(found, whole_of[name], rtol=1e-12, atol=1e-14)
    assert all(taped for taped, _ in on_cpu) and len(on_cpu) == 4


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 1}], ids=str)
def test_it_can_be_differentiated_again(options, on_cpu):
    options = {"num_layers": 2, "batch_first": True, "dropout": 0.5, **options}
    _, fast, x, hx = problem(2, 2, 1, 2, options, torch.float64)
    masks = masks_of(MASKS[-1], fast, x)

    def call(x, *hx):
        torch.manual_seed(0)  # for the same dropout each time
        output, states, cells = fast(x, hx, **masks)
        return output, *states, cells

    leaves = [t.requires_grad_() for t in (x, *hx)]
    assert torch.autograd.gradcheck(call, leaves) and torch.autograd.gradgradcheck(call, leaves)
    assert on_cpu


@pytest.mark.parametrize(("T", "N"), [(0, 3), (3, 0), (0, 0)])
def test_no_steps_and_no_rows_go_the_general_way(T, N, on_cpu):
    _, fast, x, hx = problem(T, N, 4, 6, {"num_layers": 2}, torch.float32)
    expected = on_reference(fast)(x, hx)
    output, states = fast(x, hx)
    torch.testing.assert_close([output, *states], [expected[0], *expected[1]], rtol=0, atol=0)
    assert not on_cpu


@torch.no_grad()
@pytest.mark.parametrize("what", ["no inputs", "stored weights"])
def test_dropout_is_drawn_once_for_what_the_pair_does_not_take(what):
    lstm = FastLSTM(1, 8, 3, dropout=0.5, weight_dtype=None if what == "no inputs" else STORED)
    x, layers = torch.randn(4, 2, 1), [list(names) for names in lstm.all_weights]
    layers[0][0] = torch.empty(32, 0)

    def call(backend):
        lstm.backend = backend
        if what == "no inputs":
            options = {"dropout": 0.5, "training": True, "backend": backend}
            return functional.lstm(x[..., :0], layers, **options)
        return lstm(x)

    found = []
    for backend in ("cuda", "reference"):
        torch.manual_seed(0)
        found.append((call(backend)[0], torch.get_rng_state()))
    (output, after), (expected, expected_after) = found
    assert torch.equal(after, expected_after)
    torch.testing.assert_close(output, expected)


def test_tf32_follows_the_setting(on_cpu):
    lstm, fast, x, hx = problem(3, 4, 5, 24, {}, torch.float32)
    with torch.no_grad():
        exact = fast(x, hx)[0]
        torch.backends.cudnn.rnn.fp32_precision = "tf32"
        rounded = fast(x, hx)[0]
        oracle = lstm.double()(x.double(), tuple(s.double() for s in hx))[0]
    errors = [float((y - oracle).abs().max()) for y in (exact, rounded)]
    assert errors[1] > 10 * errors[0]
    assert len(on_cpu) == 2


@torch.no_grad()
def test_a_call_launches_what_it_must(on_cpu):
    """Biases in one launch for the whole stack, and each layer's recurrence in one."""
    _, fast, x, _ = problem(5, 2, 4, 16, {"num_layers": 3, "bidirectional": True}, torch.bfloat16)
    fast(x)
    assert on_cpu == [(False, 1 + 3)]


@torch.no_grad()
def test_a_gate_input_is_rounded_once(on_cpu):
    """A bias larger than the product's last digit by far, in bfloat16: added after a rounding of
    the product, it would round what is left of that again."""
    fast = FastLSTM(64, 8, dtype=torch.bfloat16, backend="cuda")
    for p in fast.parameters():
        p.zero_()
    x = torch.full((1, 1, 64), 1.0, dtype=torch.bfloat16)
    fast.weight_ih_l0[16:24, 0], fast.weight_ih_l0[16:24, 1] = 0.125, 2.0**-12  # of g
    fast.bias_ih_l0[16:24] = -0.125
    fast.bias_ih_l0[:8] = fast.bias_ih_l0[24:] = 20.0
    c = fast(x)[1][1]
    torch.testing.assert_close(c, torch.full_like(c, 2.0**-12), rtol=2**-8, atol=0)
    assert len(on_cpu) == 1


@pytest.fixture
def dropout_of_a_gpu(monkeypatch):
    """Torch's dropout with a GPU's numbers: what is kept is scaled in float32."""

    def scaled(y, mask, scale):
        return (y.float() * mask * scale).to(y.dtype)

    def drop(y, p):
        return scaled(y, torch.rand(y.shape) >= p, 1 / (1 - p))

    monkeypatch.setattr(F, "dropout", drop)
    monkeypatch.setattr(between, "scales_wide", lambda y: True)
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has one
        library.impl("native_dropout_backward", scaled, "CPU")
    yield
    library._destroy()


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("way", ["shortest", "general"])
def test_dropout_does_not_round_its_scale(
    way, variational, options, differentiable, dropout_of_a_gpu, on_cpu, monkeypatch
):
    """In bfloat16 1 / 0.9 would be 0.16 % less. Gradients of weights are sums, which the roundings
    of single numbers leave as they are: both ways agree to much less than that. Without biases,
    which the layers' ops round otherwise."""
    options = {"num_layers": 3, "dropout": 0.1, "bias": False, **options}
    fast = FastLSTM(32, 32, dtype=torch.bfloat16, backend="cuda", **options)
    fast.variational_dropout = variational
    x = torch.randn(6, 16, 32, dtype=torch.bfloat16)
    w = torch.randn(6, 16, 64 if fast.bidirectional else 32, dtype=torch.bfloat16)

    def gradients():
        torch.manual_seed(0)
        output, _ = fast(x)
        wanted = list(fast.parameters())
        return torch.autograd.grad(output, wanted, w, create_graph=differentiable)

    if way == "general":
        monkeypatch.setattr(inputs, "pair_for", lambda *_: None)
    found = gradients()
    assert len(on_cpu) == 1
    for module in (inputs, stack_run):
        monkeypatch.setattr(module, "pair_for", lambda *_: None)
    expected = gradients()
    assert len(on_cpu) == 1
    for (name, _), got, layers in zip(fast.named_parameters(), found, expected, strict=True):
        got, layers = got.detach().double(), layers.detach().double()
        share = float((got * layers).sum() / layers.square().sum()) - 1
        # Each of n numbers off by up to 2**-8 of itself, by chance: six times what is left of all.
        assert abs(share) < 6 * 2**-8 / got.numel() ** 0.5 < 4e-4, (name, share)


def test_a_full_memory_is_said_as_torch_says_it(monkeypatch):
    def forward(*args, **options):
        raise RuntimeError("API call failed: no memory")

    def allocate(*args):
        raise MemoryError("all of it")

    pair_ = whole.PAIRS["simt"]._replace(forward=forward)
    monkeypatch.setitem(whole.PAIRS, "simt", pair_)
    monkeypatch.setattr(whole, "_forward_fake", allocate)
    _, fast, x, _ = problem(3, 4, 5, 24, {}, torch.float32)
    with pytest.raises(MemoryError, match="all of it"):
        fast(x)
