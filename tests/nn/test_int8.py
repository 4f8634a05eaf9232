"""Weights in int8: `weight_dtype=torch.int8` of FastLSTM and FastLSTMCell, what they give and what
they take. With weight_only the results are those of the widened weights, which the float32 kernels
give; what quantised states and inputs add is bounded by support/int8_bounds.py.
"""

import copy
import io
import pickle

import int8_bounds
import pytest
import torch
from pairs import ignore_onednn, needs_library, one_thread  # noqa: F401  (a fixture)
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastlstm import FastLSTM, FastLSTMCell, functional, int8
from fastlstm.nn import int8_storage
from fastlstm.testing import compare

pytestmark = [ignore_onednn]

INT8 = torch.int8
# T, N (None: unbatched), I, H: sizes that are multiples of nothing beside 16 and 64.
CASES = [
    (1, 1, 3, 5, {"num_layers": 2, "bidirectional": True}),
    (3, 8, 40, 31, {"proj_size": 7}),
    (4, None, 17, 33, {"bias": False}),
    (2, 5, 64, 32, {"num_layers": 2, "proj_size": 31, "bidirectional": True}),
    (6, 2, 18, 64, {"num_layers": 2, "batch_first": True}),
    (5, 3, 1, 1, {}),
]
BOUNDED = [
    (1, 4, 40, 31, {}),
    (1, 3, 64, 64, {"bidirectional": True, "bias": False}),
    (1, 3, 17, 33, {"proj_size": 7}),
    (1, 2, 1, 1, {}),
    (4, 5, 20, 30, {"bidirectional": True}),
    (3, 4, 20, 30, {"num_layers": 2, "bidirectional": True, "proj_size": 9}),
]


def problem(T, N, I, H, options, **more):
    lstm = nn.LSTM(I, H, **options)
    fast = FastLSTM.from_torch(lstm, weight_dtype=INT8, **more)
    rows = () if N is None else (N,)
    lead = (N, T) if lstm.batch_first and rows else (T, *rows)
    states = lstm.num_layers * (1 + lstm.bidirectional), *rows
    hx = torch.randn(*states, lstm.proj_size or H) / 2, torch.randn(*states, H)
    return lstm, fast, torch.randn(*lead, I), hx


def one_level(module):
    """What a state that is rounded to the other side of a tie may change: `weight_dtype`'s gates
    see one level of it."""
    return max(float(w.abs().max()) for w in module.all_weights[0][:2]) / 127 + 1e-5


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_weight_only_gives_what_the_widened_weights_give(case):
    _, fast, x, hx = problem(*case, weight_only=True)
    compare(fast, fast.to_torch(), x, hx, gradients=False)
    compare(fast, fast.to_torch(), x, gradients=False)


@torch.no_grad()
@pytest.mark.parametrize("weight_only", [False, True])
@pytest.mark.parametrize("case", BOUNDED, ids=str)
def test_errors_are_within_the_derived_bound(case, weight_only):
    lstm, fast, x, hx = problem(*case, weight_only=weight_only)
    output = fast(x, hx)[0]
    exact, bound = int8_bounds.bounded(lstm, x, hx, weight_only)
    error = (output.double() - exact).abs()
    assert (error <= bound).all()
    if len(x) * lstm.num_layers == 1:  # it says something; worst cases add up over more
        assert float(bound.max()) < 0.2 * float(exact.abs().max())


@torch.no_grad()
def test_what_3_bits_would_give_is_over_the_bound(monkeypatch):
    monkeypatch.setattr(int8, "LEVELS", 3)
    lstm, fast, x, hx = problem(1, 4, 30, 20, {})
    exact, bound = int8_bounds.bounded(lstm, x, hx)
    assert ((fast(x, hx)[0].double() - exact).abs() > bound).any()


@torch.no_grad()
@pytest.mark.shows("int8", direction="forward")
@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_library), "reference"])
@pytest.mark.parametrize("weight_only", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_masks_cells_and_layer_outputs(case, weight_only, backend):
    """Held to the same call of the widened weights, within what the inputs' rounding adds."""
    _, fast, x, hx = problem(*case, weight_only=weight_only, backend=backend)
    widened = FastLSTM.from_torch(fast, weight_dtype=None)
    fast.return_layer_outputs = widened.return_layer_outputs = True
    T, N = (x.shape[0], 1) if x.dim() == 2 else x.shape[:2][:: -1 if fast.batch_first else 1]
    lengths = torch.randint(T + 1, (N,))
    reset_mask = torch.rand(x.shape[:-1]) < 0.3
    given = {"lengths": lengths, "reset_mask": reset_mask, "return_cell_sequence": True}
    results = [m(x, hx, **given) for m in (fast, widened)]
    close = {"rtol": 1e-5, "atol": 4e-6} if weight_only else {"rtol": 0, "atol": 0.15}
    torch.testing.assert_close(*results, **close)
    if not weight_only:
        assert not torch.equal(results[0][0], results[1][0])
    output, _, cells, outputs = results[0]
    assert outputs[-1] is output and len(outputs) == fast.num_layers
    fast.return_layer_outputs = False
    whole = fast(x, hx, **given)
    atol = one_level(fast)
    torch.testing.assert_close((output, cells), (whole[0], whole[2]), rtol=0, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("weight_only", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_forms_of_input(batch_first, weight_only):
    options = {"bidirectional": True, "num_layers": 2, "batch_first": batch_first}
    _, fast, x, hx = problem(6, 3, 10, 12, options, weight_only=weight_only)
    lengths = torch.tensor([4, 6, 1])
    expected, states = fast(x, hx, lengths=lengths)
    close = {"rtol": 0, "atol": one_level(fast)}
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    output, packed_states = fast(packed, hx)
    output = pad_packed_sequence(output, batch_first, total_length=6)[0]
    torch.testing.assert_close((output, packed_states), (expected, states), **close)
    rows = x if batch_first else x.transpose(0, 1)
    nested = torch.nested.nested_tensor([row[:n] for row, n in zip(rows, lengths, strict=True)], layout=torch.jagged)
    output, nested_states = fast(nested, hx)
    output = output.to_padded_tensor(0.0, output_size=(3, 6, 24))
    padded = expected if batch_first else expected.transpose(0, 1)
    torch.testing.assert_close((output, nested_states), (padded, states), **close)
    alone = fast(rows[1], [s[:, 1] for s in hx])
    row = padded[1], tuple(s[:, 1] for s in states)
    torch.testing.assert_close(alone, row, **close)
    fast.batch_first_states = True
    swapped = fast(x, [s.transpose(0, 1) for s in hx], lengths=lengths)
    expected = expected, tuple(s.transpose(0, 1) for s in states)
    torch.testing.assert_close(swapped, expected, **close)


@torch.no_grad()
@pytest.mark.parametrize("weight_only", [False, True])
@pytest.mark.parametrize("N", [None, 1, 9])
def test_steps_and_streams(N, weight_only):
    lead = () if N is None else (N,)
    fast = FastLSTM(7, 20, 2, weight_dtype=INT8, weight_only=weight_only)
    x = torch.randn(5, *lead, 7)
    expected, states = fast(x)
    ys, state = [], None
    for x_t in x:
        y, state = fast.step(x_t, state)
        ys.append(y)
    close = {"rtol": 0, "atol": one_level(fast)}
    torch.testing.assert_close((torch.stack(ys), state), (expected, states), **close)
    first, state = fast(x[:2])
    second, state = fast(x[2:], state)
    torch.testing.assert_close((torch.cat([first, second]), state), (expected, states), **close)
    if N is not None:
        fast.batch_first_states = True
        y, state = fast.step(x[0])
        assert state[0].shape == (N, 2, 20)
        again = fast.step(x[1], state)[0]
        torch.testing.assert_close(again, expected[1], **close)


@torch.no_grad()
@pytest.mark.parametrize("weight_only", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("N", [None, 1, 5])
def test_cells(N, bias, weight_only):
    lead = () if N is None else (N,)
    lstm = nn.LSTM(7, 20, bias=bias)
    cell = nn.LSTMCell(7, 20, bias)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in lstm.state_dict().items()})
    fast = FastLSTMCell.from_torch(cell, weight_dtype=INT8, weight_only=weight_only)
    whole = FastLSTM.from_torch(lstm, weight_dtype=INT8, weight_only=weight_only)
    x, state = torch.randn(*lead, 7), (torch.randn(*lead, 20), torch.randn(*lead, 20))
    _, (h, c) = whole(x.unsqueeze(0), [s.unsqueeze(0) for s in state])
    torch.testing.assert_close(fast(x, state), (h[0], c[0]), rtol=0, atol=one_level(whole))
    assert fast(x)[0].shape == (*lead, 20)
    again = FastLSTMCell(7, 20, bias, weight_dtype=INT8)
    again.load_state_dict(fast.state_dict())
    again.weight_only = weight_only
    torch.testing.assert_close(again(x, state), fast(x, state), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="size"):
        fast(torch.randn(*lead, 8), state)
    wide = copy.deepcopy(fast).double()
    assert wide.weight_dtype is None and wide.weight_hh.dtype == torch.float64


def test_state_dicts_of_either_kind():
    lstm, fast, x, hx = problem(4, 3, 5, 7, {"proj_size": 3, "bidirectional": True})
    state = fast.state_dict()
    assert state["weight_ih_l0"].dtype == INT8 and state["weight_ih_l0"].shape == (28, 5)
    assert state["weight_ih_l0_scale"].shape == (28,)
    assert state["weight_hr_l0_reverse_scale"].shape == (3,)
    assert set(state) - set(lstm.state_dict()) == {
        f"weight_{kind}_l0{d}_scale" for kind in ("ih", "hh", "hr") for d in ("", "_reverse")
    }
    expected = fast(x, hx)

    def same(module):
        torch.testing.assert_close(module(x, hx), expected, rtol=0, atol=0)

    options = {"proj_size": 3, "bidirectional": True}
    for given in (state, lstm.state_dict()):
        for assign in (False, True):
            twin = FastLSTM(5, 7, weight_dtype=INT8, **options)
            assert not any(twin.load_state_dict(given, assign=assign))
            same(twin)
    model = nn.ModuleDict({"a": FastLSTM(5, 7, weight_dtype=INT8, **options)})
    model.load_state_dict({f"a.{k}": v for k, v in state.items()})
    same(model["a"])
    widened = FastLSTM(5, 7, **options)
    widened.load_state_dict(state)
    step = state["weight_hh_l0_scale"][:, None]
    assert ((widened.weight_hh_l0 - lstm.weight_hh_l0).abs() <= step / 2 * (1 + 2**-15)).all()
    halves = FastLSTM(5, 7, weight_dtype=torch.bfloat16, **options)
    halves.load_state_dict(state)
    assert halves.weight_hh_l0.dtype == torch.bfloat16
    kept = FastLSTM(5, 7, device="meta", weight_dtype=INT8, **options)
    kept.load_state_dict(state, assign=True)
    same(kept)


def test_state_dicts_that_do_not_fit():
    _, fast, _, _ = problem(1, 1, 5, 7, {})
    state = fast.state_dict()
    twin = FastLSTM(5, 7, weight_dtype=INT8)

    def refused(change, words, module=twin):
        with pytest.raises(RuntimeError, match=words):
            module.load_state_dict({**state, **change})

    wrong = {"weight_ih_l0": torch.zeros(28, 6, dtype=INT8)}
    refused(wrong, "size mismatch for weight_ih_l0")
    refused({"bias_hh_l0": torch.zeros(3)}, "size mismatch for bias_hh_l0")
    refused({"weight_hh_l0": torch.zeros(28, 7).fill_(torch.nan)}, "weight_hh_l0: row 0 has NaN")
    refused({"weight_hh_l0": torch.zeros(28, 7, dtype=torch.int32)}, "weight_hh_l0: got torch.int3")
    refused({"weight_hh_l0": torch.full((28, 7), -128, dtype=INT8)}, "weight_hh_l0: has -128")
    refused({"more": torch.zeros(1)}, 'Unexpected key.*"more"')
    for module in (twin, FastLSTM(5, 7)):
        refused({"weight_hh_l0_scale": torch.zeros(3)}, "needs weight_hh_l0_scale", module)
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight_hh_l0"'):
        twin.load_state_dict({k: v for k, v in state.items() if k != "weight_hh_l0"})
    loose = {k: v for k, v in state.items() if k != "bias_ih_l0"} | {"more": torch.zeros(1)}
    found = twin.load_state_dict(loose, strict=False)
    assert found.missing_keys == ["bias_ih_l0"] and found.unexpected_keys == ["more"]


def test_copies_pickles_and_casts():
    lstm, fast, x, hx = problem(4, 3, 5, 7, {"num_layers": 2, "proj_size": 3}, weight_only=True)
    expected = fast(x, hx)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    twins = [
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        torch.load(file, weights_only=False),
        FastLSTM.from_torch(fast),
        copy.deepcopy(fast).to("cpu"),
    ]
    for twin in twins:
        assert twin.weight_dtype == INT8 and twin.weight_only
        torch.testing.assert_close(twin(x, hx), expected, rtol=0, atol=0)
    assert "weight_dtype=torch.int8, weight_only=True" in repr(fast)
    for cast, dtype in (
        ("float", torch.float32),
        ("double", torch.float64),
        ("half", torch.float16),
        ("bfloat16", torch.bfloat16),
    ):
        changed = getattr(copy.deepcopy(fast), cast)()
        assert changed.weight_dtype is None and not changed.weight_only
        assert {p.dtype for p in changed.parameters()} == {dtype}
        assert [n for n, _ in changed.named_parameters()] == [n for n, _ in lstm.named_parameters()]
    widened = copy.deepcopy(fast)
    widened.weight_dtype = None
    assert all(p.requires_grad for p in widened.parameters())
    assert not list(widened.buffers())
    torch.testing.assert_close(widened(x, hx), expected, rtol=1e-5, atol=4e-6)
    widened.weight_dtype = INT8
    widened.weight_dtype = torch.bfloat16
    assert widened.weight_hh_l1.dtype == torch.bfloat16
    assert FastLSTM.from_torch(fast, weight_dtype=None).weight_dtype is None
    before = {name: b.clone() for name, b in fast.named_buffers()}
    fast.reset_parameters()
    assert fast.weight_dtype == INT8 and fast.weight_only
    assert not torch.equal(fast.weight_hh_l0_packed, before["weight_hh_l0_packed"])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_memory_is_a_quarter(options):
    def held(module):
        tensors = [*module.parameters(), *module.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)

    lstm = nn.LSTM(256, 256, **options)
    fast = FastLSTM.from_torch(lstm, weight_dtype=INT8)
    assert held(fast) <= 0.26 * held(lstm)
    # No other copy is kept: not of what a call made either.
    fast(torch.randn(3, 2, 256))
    kept = [v for v in vars(fast).values() if isinstance(v, torch.Tensor)]
    assert not kept and held(fast) <= 0.26 * held(lstm)
    assert len(list(fast.buffers())) == len(int8_storage.buffer_names(fast))


def test_a_gradient_is_refused():
    _, fast, x, hx = problem(3, 2, 4, 5, {})
    words = r"weight_dtype=torch\.int8 is for inference.*input requires one.*torch\.no_grad\(\)"
    leaf = x.clone().requires_grad_()
    for call in (
        lambda: fast(leaf),
        lambda: fast(leaf, lengths=torch.tensor([1, 2])),
        lambda: fast.step(leaf[0]),
        lambda: FastLSTMCell(4, 5, weight_dtype=INT8)(leaf[0]),
        lambda: torch.func.grad(lambda x: fast(x)[0].sum())(x),
    ):
        with pytest.raises(RuntimeError, match=words):
            call()
    with pytest.raises(RuntimeError, match="h0 requires one"):
        fast(x, (hx[0].requires_grad_(), hx[1]))
    with torch.no_grad():
        assert not fast(leaf)[0].requires_grad
    assert not fast.train()(x)[0].requires_grad  # nothing asks for one
    norms = FastLSTM(4, 5, layer_norm=True, weight_dtype=INT8)
    with pytest.raises(RuntimeError, match=r"layer_norm\[0\]\.weight_ih requires one"):
        norms(x)
    fast.weight_dtype = None
    fast(leaf)[0].sum().backward()
    assert fast.weight_hh_l0.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("options", [{"zoneout": 0.25}, {"layer_norm": True}, {"zoneout": (0.1, 0.0), "proj_size": 3}])
def test_variants_of_the_cell_take_widened_weights(options):
    fast = FastLSTM(4, 6, weight_dtype=INT8, **options).eval()
    x = torch.randn(5, 3, 4)
    widened = FastLSTM.from_torch(fast, weight_dtype=None)
    torch.testing.assert_close(fast(x), widened(x), rtol=0, atol=0)
    state = fast.state_dict()
    twin = FastLSTM(4, 6, weight_dtype=INT8, **options).eval()
    twin.load_state_dict(state)
    torch.testing.assert_close(twin(x), fast(x), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("weight_only", [False, True])
def test_dropout(weight_only):
    options = {"recurrent_dropout": 0.3, "weight_dropout": 0.3, "dropout": 0.4, "num_layers": 2}
    fast = FastLSTM(4, 16, weight_dtype=INT8, weight_only=weight_only, **options)
    plain = FastLSTM(4, 16, 2, weight_dtype=INT8, weight_only=weight_only)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(fast.eval()(x), plain(x), rtol=0, atol=0)
    widened = FastLSTM.from_torch(fast, weight_dtype=None).train()
    fast.train()
    found = []
    for module in (fast, widened):
        torch.manual_seed(0)
        found.append(module(x))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    fast.recurrent_dropout = fast.weight_dropout = 0.0
    widened.recurrent_dropout = widened.weight_dropout = 0.0
    for variational in (False, True):
        fast.variational_dropout = widened.variational_dropout = variational
        found = []
        for module in (fast, widened):
            torch.manual_seed(0)
            found.append(module(x)[0])
        close = {"rtol": 1e-5, "atol": 4e-6} if weight_only else {"rtol": 0, "atol": 0.05}
        torch.testing.assert_close(*found, **close)  # the same masks
        assert not torch.equal(found[0], fast.eval()(x)[0])
        fast.train()


def test_autocast_computes_in_float32():
    _, fast, x, hx = problem(4, 3, 5, 7, {})
    expected = fast(x.bfloat16().float(), hx)
    with torch.autocast("cpu", torch.bfloat16):
        found = fast(x.bfloat16(), hx)
        cell = FastLSTMCell(5, 7, weight_dtype=INT8)
        assert cell(x[0].bfloat16())[0].dtype == torch.float32
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=one_level(fast))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*trace", "ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("weight_only", [False, True])
def test_compiled_exported_and_traced(weight_only):
    _, fast, x, hx = problem(4, 3, 5, 7, {"num_layers": 2}, weight_only=weight_only)
    expected, close = fast(x, hx), {"rtol": 0, "atol": one_level(fast)}
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, hx), expected, **close)
    masks = {"lengths": torch.tensor([4, 1, 0]), "reset_mask": torch.rand(4, 3) < 0.3}
    masks["return_cell_sequence"] = True
    torch.testing.assert_close(compiled(x, hx, **masks), fast(x, hx, **masks), **close)
    T, N = torch.export.Dim("T"), torch.export.Dim("N")
    program = torch.export.export(fast, (x,), dynamic_shapes=({0: T, 1: N},))
    assert "int8_stack" in str(program.graph)
    longer = torch.randn(9, 2, 5)
    torch.testing.assert_close(program.module()(longer), fast(longer), **close)
    traced = torch.jit.trace(fast, (x, hx))
    assert "fastlstm::int8_stack" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x, hx), expected, **close)
    with pytest.raises(ValueError, match=r"weight_dtype=torch\.int8, which nn.LSTM cannot hold"):
        torch.jit.script(nn.Sequential(fast))
    cell = FastLSTMCell(5, 7, weight_dtype=INT8)
    whole = torch.compile(cell, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(x[0]), cell(x[0]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_transforms():
    _, fast, x, _ = problem(4, 3, 5, 7, {})
    xs = torch.stack([x, -x])
    found = torch.vmap(lambda x: fast(x)[0])(xs)
    torch.testing.assert_close(found[1], fast(-x)[0], rtol=0, atol=one_level(fast))
    buffers = dict(fast.named_buffers())
    buffers["weight_hh_l0_scale"] = buffers["weight_hh_l0_scale"] * 2
    called = torch.func.functional_call(fast, buffers, (x,))
    fast.weight_hh_l0_scale.mul_(2)
    torch.testing.assert_close(called, fast(x), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("weight_only", [False, True])
def test_stateless(weight_only):
    options = {"bidirectional": True, "num_layers": 2, "proj_size": 3}
    lstm, fast, x, hx = problem(6, 3, 4, 5, options, weight_only=weight_only)
    weights = [int8.quantise(w) for w in lstm.all_weights]
    given = {"bidirectional": True, "weight_only": weight_only}
    result = functional.lstm(x, weights, hx, **given)
    torch.testing.assert_close(result, fast(x, hx), rtol=0, atol=one_level(fast))
    masks = {"lengths": torch.tensor([6, 2, 0]), "reset_mask": torch.rand(6, 3) < 0.3}
    result = functional.lstm(x, weights, hx, return_cell_sequence=True, **masks, **given)
    expected = fast(x, hx, return_cell_sequence=True, **masks)
    torch.testing.assert_close(result, expected, rtol=0, atol=one_level(fast))
    turned = functional.lstm(
        x.transpose(0, 1), weights, batch_first=True, batch_first_states=True, backend="reference",
        hx=[s.transpose(0, 1) for s in hx], **given,
    )  # fmt: skip
    torch.testing.assert_close(turned[0].transpose(0, 1), fast(x, hx)[0], rtol=0, atol=one_level(fast))
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.lstm(x.bfloat16(), weights, **given)[0].dtype == torch.float32
    for change, words in (
        ({"scale_hh": weights[1].scale_hh[:4]}, r"weights\[1\].scale_hh: got shape"),
        ({"packed_ih": weights[1].packed_hh[:, :1].clone()[..., :2]}, r"weights\[1\].packed_ih"),
        ({"inputs": 5}, r"weights\[1\].inputs: got 5, expected 4"),
        ({"bias": None}, r"weights\[1\].bias: expected in every entry"),
    ):
        wrong = [weights[0], weights[1]._replace(**change), *weights[2:]]
        with pytest.raises(ValueError, match=words):
            functional.lstm(x, wrong, **given)
    with pytest.raises(ValueError, match=r"weights\[1\]: got LSTMWeights, expected Int8Weights"):
        functional.lstm(x, [weights[0], lstm.all_weights[1]], **given)
    with pytest.raises(ValueError, match=r"input: got torch\.float64"):
        functional.lstm(x.double(), weights, **given)
    with pytest.raises(ValueError, match="weight_only: it is for"):
        functional.lstm(x, lstm.all_weights, **given) if weight_only else functional.lstm(
            x, lstm.all_weights, bidirectional=True, weight_only=True
        )


@torch.no_grad()
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backends(backend):
    _, fast, x, hx = problem(4, 3, 5, 7, {})
    expected = fast(x, hx)
    fast.backend = backend
    torch.testing.assert_close(fast(x, hx), expected, rtol=0, atol=one_level(fast))
    meta = copy.deepcopy(fast).to("meta")
    assert meta(x.to("meta"))[0].shape == expected[0].shape
    fast.backend = "cuda"
    with pytest.raises(RuntimeError, match="not on a GPU"):
        fast(x)


@torch.no_grad()
@pytest.mark.parametrize(("T", "N"), [(0, 3), (4, 0), (0, 0)])
def test_nothing(T, N):
    fast = FastLSTM(3, 5, 2, bidirectional=True, weight_dtype=INT8)
    hx = torch.randn(4, N, 5), torch.randn(4, N, 5)
    output, states = fast(torch.randn(T, N, 3), hx)
    assert output.shape == (T, N, 10)
    torch.testing.assert_close(states, hx, rtol=0, atol=0)


@torch.no_grad()
def test_rows_of_zeros_and_small_ones():
    lstm = nn.LSTM(3, 5)
    lstm.weight_hh_l0.zero_()
    lstm.weight_ih_l0[2:9] = 0
    lstm.weight_ih_l0[9] *= 1e-42
    fast, x = FastLSTM.from_torch(lstm, weight_dtype=INT8), torch.randn(4, 2, 3)
    exact, bound = int8_bounds.bounded(copy.deepcopy(lstm), x)
    assert ((fast(x)[0] - exact).abs() <= bound).all()
    lstm.weight_ih_l0.zero_()
    fast = FastLSTM.from_torch(lstm, weight_dtype=INT8)
    torch.testing.assert_close(fast(x), lstm(x))


def test_what_does_not_fit_is_refused():
    lstm = nn.LSTM(3, 4, 2)
    with torch.no_grad():
        lstm.weight_hh_l1[7, 2] = torch.nan
    with pytest.raises(ValueError, match="weight_hh_l1: row 7 has NaN or infinity"):
        FastLSTM.from_torch(lstm, weight_dtype=INT8)
    fast = FastLSTM.from_torch(lstm)
    with pytest.raises(ValueError, match="weight_hh_l1: row 7"):
        fast.weight_dtype = INT8
    assert fast.weight_dtype is None and fast.weight_hh_l0.dtype == torch.float32
    with pytest.raises(ValueError, match=r"weight_ih_l0 is torch\.float64"):
        FastLSTM(3, 4, dtype=torch.float64, weight_dtype=INT8)
    pruned = prune.l1_unstructured(FastLSTM(3, 4), "weight_hh_l0", 0.5)
    with pytest.raises(ValueError, match="weight_hh_l0 is not a parameter of the module itself"):
        pruned.weight_dtype = INT8
    with pytest.raises(ValueError, match=r"weight_only: it says that with weight_dtype=torch\.int8"):
        FastLSTM(3, 4, weight_only=True)
    with pytest.raises(TypeError, match="weight_only: got int"):
        FastLSTM(3, 4, weight_dtype=INT8, weight_only=1)
    fast, x = FastLSTM(3, 4, weight_dtype=INT8), torch.randn(2, 1, 3)
    plain = nn.LSTM(3, 4)
    for wrong in (x.bfloat16(), x.double(), torch.randn(2, 1, 5), x[0, 0], torch.randn(1, 1, 1, 3)):
        outcomes = []
        for module in (fast, plain):
            with pytest.raises((ValueError, RuntimeError)) as caught:
                module(wrong)
            outcomes.append((caught.type, str(caught.value)))
        assert outcomes[0] == outcomes[1]
    for hx in ((torch.zeros(2, 1, 4),) * 2, (torch.zeros(1, 1, 4), torch.zeros(1, 1, 3))):
        with pytest.raises(RuntimeError, match="Expected hidden"):
            fast(x, hx)
