"""The op of a stack with int8 weights: its definition held to exact arithmetic, the kernels, where
there are any, to its definition, and what it refuses."""

import pytest
import torch
from torch import nn

from fastlstm import int8
from fastlstm.stack.int8 import int8_stack, int8_stack_reference, quantise_activations

OPS = {"op": int8_stack, "reference": int8_stack_reference}
NAN, INF = float("nan"), float("inf")
# T, N, I, H, and the rest: sizes that are no multiples of 4, 16 or 64 beside some that are.
CASES = [
    (1, 1, 1, 1, {}),
    (3, 2, 5, 1, {"bidirectional": True}),
    (4, 3, 3, 17, {"num_layers": 2, "bias": False}),
    (5, 1, 64, 64, {}),
    (2, 9, 70, 33, {"proj_size": 6, "num_layers": 2, "bidirectional": True}),
    (3, 4, 16, 48, {"proj_size": 32, "bias": False}),
]


def problem(T, N, I, H, options, dtype=torch.float32):
    lstm = nn.LSTM(I, H, **options)
    D, P = 1 + lstm.bidirectional, lstm.proj_size or H
    layers = []
    for k in range(lstm.num_layers):
        layers.append([])
        for names in lstm._all_weights[k * D : (k + 1) * D]:
            w = [getattr(lstm, name) for name in names]
            if not lstm.bias:
                w[2:2] = [None, None]
            layers[-1].append(int8.quantise(w))
    x = torch.randn(T, N, I)
    states = torch.randn(lstm.num_layers * D, N, P) / 2, torch.randn(lstm.num_layers * D, N, H)
    return lstm, layers, x, states


def call(
    op, layers, x, states=(None, None), *, batch_first=False, lengths=None, reset=None, weight_only=False, cells=False
):
    D = len(layers[0])
    return op(
        x, *states, int8.flat(layers), len(layers), D == 2, batch_first, lengths, reset,
        weight_only, cells,
    )  # fmt: skip


def by_integers(layers, x, states):
    """T = 1 of one layer and direction: Python's integers, and float64 around them."""
    (w,) = layers[0]
    H, P = w.hidden, w.outputs

    def products(v, packed, scale, rows, K):
        q_v, a = quantise_activations(v)
        q_w = int8.unpack(packed, rows, K).tolist()
        sums = [[sum(int(p) * q for p, q in zip(row, unit, strict=True)) for unit in q_w] for row in q_v.tolist()]
        return torch.tensor(sums, dtype=torch.float64) * a.double() * scale.double()

    z = products(x[0], w.packed_ih, w.scale_ih, H, x.shape[2])
    z = z + products(states[0][0], w.packed_hh, w.scale_hh, H, P)
    z = z if w.bias is None else z + w.bias
    i, f, g, o = z.chunk(4, -1)
    c = f.sigmoid() * states[1][0] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c, z


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 7), (2, 64, 16), (5, 33, 20)])
def test_one_step_is_exact_but_for_floats(sizes, op):
    N, I, H = sizes
    _, layers, x, states = problem(1, N, I, H, {})
    y, h_n, c_n, _ = call(OPS[op], layers, x, states)
    h, c, z = by_integers(layers, x, states)
    # Six roundings of the gates' terms, and those of the functions: 16 units of the largest.
    budget = 16 * 2.0**-24 * (1 + float(z.abs().max()) + float(c.abs().max()))
    assert float((c_n[0] - c).abs().max()) <= budget
    assert float((h_n[0] - h).abs().max()) <= budget
    assert torch.equal(y[0], h_n[0])


@pytest.mark.parametrize("weight_only", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_and_the_definition(case, weight_only):
    lstm, layers, x, states = problem(*case)
    T, N = x.shape[:2]
    lengths = torch.randint(T + 1, (N,))
    reset = torch.rand(T, N) < 0.3
    # A state's rounding may fall to the other side of a tie where floats are summed otherwise: one
    # step of what it is quantised to.
    step = max(float(w.detach().abs().max()) for w in lstm.parameters()) / 127 + 1e-5
    for given in ({}, {"lengths": lengths, "reset": reset}):
        found = [call(op, layers, x, states, weight_only=weight_only, cells=True, **given) for op in OPS.values()]
        torch.testing.assert_close(*found, rtol=0, atol=step)
        assert [t.stride() for t in found[0]] == [t.stride() for t in found[1]]
    y, h_n, c_n, cells = found[0]
    assert cells.shape == (T, N, (1 + lstm.bidirectional) * lstm.hidden_size)
    missing = torch.arange(T)[:, None] >= lengths
    assert not y[missing].any() and not cells[missing].any()
    first = call(int8_stack, layers, x.transpose(0, 1), states, weight_only=weight_only, batch_first=True, **given)
    torch.testing.assert_close(first[0].transpose(0, 1), y, rtol=0, atol=step)
    torch.testing.assert_close(first[1:3], (h_n, c_n), rtol=0, atol=step)
    assert first[3].shape == (0,)
    alone = call(int8_stack, layers, x[:, 0], [s[:, 0] for s in states], weight_only=weight_only)
    whole = call(int8_stack, layers, x, states, weight_only=weight_only)
    torch.testing.assert_close(alone[0], whole[0][:, 0], rtol=0, atol=step)
    torch.testing.assert_close(alone[1:3], [s[:, 0] for s in whole[1:3]], rtol=0, atol=step)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("weight_only", [False, True])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("where", ["x", "h0"])
def test_what_is_not_finite_stays_in_its_row(op, weight_only, value, where):
    _, layers, x, states = problem(4, 5, 6, 9, {"num_layers": 2})
    clean = call(OPS[op], layers, x, states, weight_only=weight_only)
    (x[1, 3] if where == "x" else states[0][0, 3])[2] = value
    y, h_n, c_n, _ = call(OPS[op], layers, x, states, weight_only=weight_only)
    for got, expected in ((y, clean[0]), (h_n, clean[1]), (c_n, clean[2])):
        others = [0, 1, 2, 4]
        assert torch.equal(got[:, others], expected[:, others])
    if value is NAN or not weight_only:
        assert not y[1:, 3].isfinite().any()
    # With the weights alone an infinity saturates its gates, as it does in float32.


def test_activations():
    row = torch.tensor([127.0, 0.5, 1.5, -2.5])
    rows = torch.stack([row, row * 2.0**-106, row * 2.0**-107, row * 0, row * NAN, row / 0])
    q, scale = quantise_activations(rows)
    assert q[0].tolist() == q[1].tolist() == [127, 0, 2, -2]
    assert not q[2:].any()  # the third is below 2^-100
    assert scale[:2].flatten().tolist() == [1, 2.0**-106]
    assert not scale[2:4].any() and scale[4:].isnan().all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("T", "N"), [(0, 3), (4, 0), (0, 0)])
def test_nothing(T, N, op):
    _, layers, _, _ = problem(1, 1, 3, 5, {"num_layers": 2, "bidirectional": True, "proj_size": 2})
    x, states = torch.randn(T, N, 3), (torch.randn(4, N, 2), torch.randn(4, N, 5))
    for lengths in (None, torch.zeros(N, dtype=torch.int64)):
        y, h_n, c_n, cells = call(OPS[op], layers, x, states, lengths=lengths, cells=True)
        assert y.shape == (T, N, 4) and cells.shape == (T, N, 10)
        assert torch.equal(h_n, states[0]) and torch.equal(c_n, states[1])
        assert h_n.data_ptr() != states[0].data_ptr() or not N


def test_an_outlier_costs_its_own_row():
    """One weight 100 times the rest: the unit it belongs to is off, no other by one bit."""
    lstm, _, x, states = problem(1, 4, 12, 8, {})
    with torch.no_grad():
        before = int8.quantise(lstm._flat_weights)
        lstm.weight_ih_l0[2 * 8 + 3, 5] = 100 * lstm.weight_ih_l0.abs().max()
        after = int8.quantise(lstm._flat_weights)
    clean, hit = (call(int8_stack, [[w]], x, states)[2] for w in (before, after))
    others = [unit for unit in range(8) if unit != 3]
    assert torch.equal(clean[..., others], hit[..., others])
    assert not torch.equal(clean[..., 3], hit[..., 3])
    changed = (before.scale_ih != after.scale_ih).nonzero().flatten().tolist()
    assert changed == [2 * 8 + 3]


@pytest.mark.parametrize("op", ["int8_stack", "int8_stack_reference"])
@pytest.mark.parametrize("case", CASES[1:4], ids=str)
def test_registered(op, case):
    """Schema, shapes-only kernel and dispatch, by torch's own check."""
    _, layers, x, states = problem(*case)
    lengths, reset = torch.ones(x.shape[1], dtype=torch.int64), torch.rand(x.shape[:2]) < 0.5
    args = (x, *states, int8.flat(layers), len(layers), len(layers[0]) == 2, False)
    for rest in ((None, None, False, False), (lengths, reset, True, True)):
        tests = "test_schema", "test_faketensor"
        torch.library.opcheck(getattr(torch.ops.fastlstm, op), (*args, *rest), test_utils=tests)
    flipped = (x.transpose(0, 1), *args[1:-1], True, None, None, False, False)
    torch.library.opcheck(getattr(torch.ops.fastlstm, op), flipped, test_utils=tests)


def test_a_gradient_is_refused_with_what_to_do():
    _, layers, x, states = problem(2, 3, 4, 5, {})
    words = r"is for inference: there is no gradient.*weight_dtype = None"
    with pytest.raises(RuntimeError, match=words):
        call(int8_stack, layers, x.requires_grad_(), states)
    with pytest.raises(RuntimeError):  # torch's own words; a module says it in ours
        torch.func.grad(lambda h: call(int8_stack, layers, x.detach(), (h, states[1]))[0].sum())(states[0])
    with torch.no_grad():
        call(int8_stack, layers, x, states)


def test_vmap_is_rows_of_one_call():
    _, layers, x, states = problem(3, 2, 4, 5, {"bidirectional": True})
    xs = torch.stack([x, x.flip(0), -x], dim=2)
    lengths = torch.tensor([[3, 1], [0, 2], [2, 2]])
    reset = torch.rand(3, 3, 2) < 0.4

    def mapped(x, h0, lengths, reset):
        return call(int8_stack, layers, x, (h0, states[1]), lengths=lengths, reset=reset)[:3]

    found = torch.vmap(mapped, (2, None, 0, 0))(xs, states[0], lengths, reset)
    for k in range(3):
        expected = mapped(xs[:, :, k], states[0], lengths[k], reset[k])
        torch.testing.assert_close([t[k] for t in found], list(expected), rtol=0, atol=1e-5)
    rows = torch.vmap(lambda x: call(int8_stack, layers, x)[0], 1)(x)
    torch.testing.assert_close(rows[1], call(int8_stack, layers, x[:, 1])[0], rtol=0, atol=1e-5)
    flat = int8.flat(layers)
    with pytest.raises(RuntimeError, match="int8 weights are the same for all members"):
        torch.vmap(
            lambda s: int8_stack(x, None, None, [flat[0], s, *flat[2:]], 1, True, False, None, None, False, False)
        )(torch.stack([flat[1]] * 2))
