"""A whole stack as one pair of ops on CUDA, run on the CPU by tests/simt: results and gradients
within the budget of nn.LSTM, or of plain torch where nn.LSTM has no such option.
"""

import pytest
import torch
from cuda_kinds import family
from masked import MASKS, Masked, masks_of, on_reference
from pairs import ignore_onednn, pair

from fastlstm import FastLSTM, precision
from fastlstm.backends import table
from fastlstm.stack import whole
from fastlstm.testing import compare

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
