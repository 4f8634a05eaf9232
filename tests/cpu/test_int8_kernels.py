"""The kernels of 8-bit weights: sums of integers exactly, every step within what float32 may be off
float64, and the same bits for every number of threads and rows. test_kernels_isa.py runs this file
on each instruction set that the machine has."""

import pytest
import torch
from int8_cases import Direction, check, pack, quantise_weights, run
from op_cases import threads
from pairs import needs_library

pytestmark = needs_library

UNITS = [1, 5, 16, 17, 25, 40, 64, 96, 100, 130]
ROWS = [0, 1, 2, 3, 9, 17]
STEPS = [0, 1, 2, 7]


def problem(T, N, I, H, D=1, P=None, bias=True):
    states = torch.randn(D, N, P or H), torch.randn(D, N, H)
    return torch.randn(T, N, I), *states, [Direction.drawn(I, H, P, bias) for _ in range(D)]


def masks_of(T, N):
    return {"lengths": torch.randint(0, T + 3, (N,)), "resets": torch.rand(T, N) < 0.3}


def assert_same(got, expected):
    for name, a, b in zip(("output", "h_n", "c_n", "cells"), got, expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("weight_only", [False, True], ids=["dynamic", "weight_only"])
@pytest.mark.parametrize("H", UNITS)
def test_every_step(H, weight_only):
    for N in ROWS:
        for T in STEPS:
            for I in (1, 13, 35):
                check(*problem(T, N, I, H, bias=I != 13), weight_only=weight_only)


@pytest.mark.parametrize("weight_only", [False, True], ids=["dynamic", "weight_only"])
@pytest.mark.parametrize("H", UNITS)
def test_masks_directions_projection(H, weight_only):
    for N, T in ((1, 7), (3, 2), (9, 7), (17, 5), (2, 1)):
        for P in (None, 1, 7, 33):
            check(*problem(T, N, 21, H, 2, P), **masks_of(T, N), weight_only=weight_only)
        check(*problem(T, N, 21, H, 2), resets=torch.rand(T, N) < 0.5, weight_only=weight_only)
        lengths = torch.full((N,), T - 1)
        check(*problem(T, N, 21, H, 1, 5), lengths=lengths, weight_only=weight_only)


def test_long_sequences_in_stretches():
    """More rows than gates are made for at a time, and more than go through the steps together."""
    for T, N, H in ((1200, 1, 40), (90, 9, 130), (3, 203, 17)):
        check(*problem(T, N, 7, H, 2), **masks_of(T, N))


@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 63, 64, 65, 127, 130, 260])
def test_sums_of_gates_are_exact(K):
    """Of a gate g that is so small that tanh is the identity, with i of 1 and f of 0, c is the sum
    times its scales, to within a few roundings."""
    for N in (1, 2, 3, 4, 5, 6, 9, 17):
        H = 33
        q = torch.randint(-127, 128, (4 * H, K)).to(torch.int8)
        q[2 * H] = 127
        q[2 * H + 1] = -127
        scale = torch.full((4 * H,), 2.0**-50)
        x = torch.randint(-127, 128, (1, N, K)).float()
        x[0, 0] = 127  # the largest sums
        x[..., 0] = 127  # a row's scale is 1
        bias = torch.zeros(4, H)
        bias[0], bias[1] = 200, -200
        recurrent = Direction.drawn(1, H).hh[0].zero_(), torch.zeros(4 * H)
        direction = Direction((q, scale), recurrent, bias.flatten(), None)
        c = run(x, None, None, [direction])[2][0]
        sums = x[0].to(torch.int64) @ q[2 * H : 3 * H].to(torch.int64).t()
        assert sums.abs().max() < 2**23
        assert torch.equal((c.double() * 2**50).round().to(torch.int64), sums)


@pytest.mark.parametrize("H", [1, 3, 16, 37, 64, 66, 130, 257, 1030])
def test_sums_of_projections_are_exact(H):
    """With i of 0, f and o of 1, what is projected is tanh(c0), which is made to fall on the
    numbers of 8 bits."""
    for N in (1, 2, 3, 4, 5, 6, 9, 17):
        P = 19
        q = torch.randint(-127, 128, (P, H)).to(torch.int8)
        wanted = torch.randint(-126, 127, (N, H))
        wanted[:, 0] = 127  # tanh(20) is 1
        c0 = (wanted.double() / 127).clamp(-1, 1 - 1e-17).atanh().clamp(-20, 20).float()
        bias = torch.tensor([-200.0, 200, 0, 200]).repeat_interleave(H)
        zeros = [(torch.zeros(4 * H, K, dtype=torch.int8), torch.zeros(4 * H)) for K in (1, P)]
        direction = Direction(*zeros, bias, (q, torch.full((P,), 127.0)))
        y = run(torch.zeros(1, N, 1), None, c0.unsqueeze(0), [direction])[0][0]
        sums = wanted @ q.to(torch.int64).t()
        assert torch.equal(y.double().round().to(torch.int64), sums)


def test_layers_are_run_one_after_the_other():
    x, h0, c0, first = problem(7, 3, 11, 20, 2, 6)
    layers = [first, *(problem(7, 3, 12, 20, 2, 6)[3] for _ in range(2))]
    h0, c0 = torch.randn(6, 3, 6), torch.randn(6, 3, 20)
    masks = masks_of(7, 3)
    whole = run(x, h0, c0, [d for layer in layers for d in layer], layers=3, **masks)
    between, states = x, []
    for k, layer in enumerate(layers):
        each = run(between, h0[2 * k : 2 * k + 2], c0[2 * k : 2 * k + 2], layer, **masks)
        between, cells = each[0], each[3]
        states.append(each[1:3])
    assert_same(whole, (between, *(torch.cat(s) for s in zip(*states, strict=True)), cells))


def test_without_states_cells_or_rows():
    x, _, _, directions = problem(5, 3, 9, 20, 2)
    zeros = torch.zeros(2, 3, 20), torch.zeros(2, 3, 20)
    expected = run(x, *zeros, directions)
    assert_same(run(x, None, None, directions), expected)
    without = run(x, None, None, directions, cells=False)
    assert without[3].shape == (0,)
    assert_same(without[:3] + expected[3:], expected)
    one = run(x[:, 1], None, None, directions)
    assert one[0].shape == (5, 40) and one[1].shape == (2, 20) and one[3].shape == (5, 40)
    assert torch.equal(one[0], expected[0][:, 1]) and torch.equal(one[2], expected[2][:, 1])


@pytest.mark.parametrize("weight_only", [False, True], ids=["dynamic", "weight_only"])
@pytest.mark.parametrize("P", [None, 21])
def test_a_row_does_not_depend_on_the_others(P, weight_only):
    """In blocks of any number of rows, and alone. Of float32 sums the order is the same as well."""
    x, h0, c0, directions = problem(4, 17, 30, 50, 2, P)
    whole = run(x, h0, c0, directions, weight_only=weight_only)
    for a in range(17):
        for b in (a + 1, a + 3, a + 5, 17):
            rows = slice(a, min(b, 17))
            part = run(x[:, rows], h0[:, rows], c0[:, rows], directions, weight_only=weight_only)
            assert_same(part, [v[:, rows] for v in whole])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("P", [None, 67])
def test_any_number_of_threads(P, count):
    for T, N, H in ((9, 2, 129), (7, 13, 130), (5, 101, 65), (6, 1, 300)):
        x, h0, c0, directions = problem(T, N, 5, H, 2, P)
        masks = masks_of(T, N)
        for options in ({}, masks):
            alone = run(x, h0, c0, directions, **options)
            with threads(count):
                for _ in range(3):
                    assert_same(run(x, h0, c0, directions, **options), alone)


def test_strided_arguments():
    x, h0, c0, directions = problem(6, 3, 10, 20, 2)
    masks = masks_of(6, 3)
    expected = run(x, h0, c0, directions, **masks)
    for other in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([x, x], -1)[..., 0],
        torch.stack([x, x], 1)[:, 1],
        torch.cat([x, x], -1)[..., :10],
        x.flip(2).flip(2).permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ):
        assert_same(run(other, h0, c0, directions, **masks), expected)
    odd = [torch.stack([v, v], -1)[..., 0] for v in (h0, c0, *masks.values())]
    lengths, resets = odd[2:]
    assert_same(run(x, *odd[:2], directions, lengths=lengths, resets=resets), expected)
    turned = run(x.transpose(0, 1), h0, c0, directions, batch_first=True, **masks)
    assert torch.equal(turned[0].transpose(0, 1), expected[0])
    assert torch.equal(turned[3].transpose(0, 1), expected[3])
    same = x[:1].expand(6, 3, 10)
    assert_same(run(same, h0, c0, directions), run(same.contiguous(), h0, c0, directions))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("P", [None, 9])
def test_what_is_not_finite_stays_in_its_row(P, bad):
    """NaN from that step on in that row, in all units; nothing elsewhere."""
    x, h0, c0, directions = problem(6, 9, 37, 33, 1, P)
    clean = run(x, h0, c0, directions)
    for where in ("x", "h0"):
        for n in (0, 4, 8):
            broken_x, broken_h = x.clone(), h0.clone()
            t = 0 if where == "h0" else 3
            (broken_h[0] if where == "h0" else broken_x[t])[n, -1] = bad
            got = run(broken_x, broken_h, c0, directions)
            for a, b in zip(got[::3], clean[::3], strict=True):
                assert a[t:, n].isnan().all()
                assert torch.equal(a[:t], b[:t])
                others = [k for k in range(9) if k != n]
                assert torch.equal(a[:, others], b[:, others])
            assert got[1][0, n].isnan().all() and got[2][0, n].isnan().all()
    # A cut ends it, and steps that do not exist have no x.
    resets = torch.zeros(6, 9, dtype=torch.bool)
    resets[4] = True
    x[3, 2, 0] = bad
    got = run(x, h0, c0, directions, resets=resets)
    assert got[0][3, 2].isnan().all() and got[0][4:].isfinite().all()
    got = run(x, h0, c0, directions, lengths=torch.full((9,), 3))
    assert all(v.isfinite().all() for v in got)


def test_rows_of_zeros_and_of_tiny_numbers():
    x, h0, c0, directions = problem(4, 5, 13, 20)
    x[:, 1] = 0
    h0[:, 2] = 0
    x[:, 3] *= 2.0**-90
    check(x, h0, c0, directions)
    expected = run(x, h0, c0, directions)
    x[:, 1] = 2.0**-120
    x[0, 1, 0] = 1e-45
    assert_same(run(x, h0, c0, directions), expected)


def test_numbers_are_rounded_before_they_are_rounded_to_integers():
    """v * (1 / scale) is a float32 number: where that is half way between two integers and the
    exact product is not, a fused multiply-add would take the other one."""
    most = torch.rand(4096) + 1
    inverse = 1 / (most / 127)
    k = torch.randint(0, 126, (4096, 1)).float()
    v = (k + 0.5) / inverse[:, None] * (1 + torch.arange(-4, 5) * 2.0**-23)
    half = v * inverse[:, None] == k + 0.5
    exact = v.double() * inverse.double()[:, None]
    other = half & (exact.round() != (k + 0.5).round().double())
    rows = other.any(1)
    assert rows.sum() > 50
    picked = v[rows].gather(1, other[rows].int().argmax(1, keepdim=True))
    x = torch.cat([most[rows, None], picked, -picked], 1).unsqueeze(0)
    _, h0, c0, directions = problem(1, x.shape[1], 3, 17)
    check(x, h0, c0, directions)


def test_a_large_weight_degrades_its_own_row_alone():
    weight = torch.randn(4 * 20, 20)
    other = weight.clone()
    other[7, 3] = 1000
    a, b = quantise_weights(weight), quantise_weights(other)
    rows = torch.arange(80) != 7
    assert torch.equal(a[0][rows], b[0][rows]) and torch.equal(a[1][rows], b[1][rows])


def refused():
    def change(place, value):
        def made(arguments):
            weights = list(arguments["weights"])
            weights[place] = value(weights[place])
            arguments["weights"] = weights

        return made

    def put(name, value):
        return lambda arguments: arguments.__setitem__(name, value)

    yield "x has 1 dimensions", put("x", torch.randn(9))
    yield "x is of another dtype", put("x", torch.randn(5, 3, 9).double())
    yield r"packed_ih of layer 0, has shape \(2, 3, 4, 16, 4\)", put("x", torch.randn(5, 3, 13))
    yield "got 9 weights", lambda a: a.__setitem__("weights", a["weights"][:9])
    yield "got 0 weights", put("weights", [])
    yield "for 0 layers", put("layers", 0)
    yield "for -1 layers", put("layers", -1)
    yield "got 20 weights", put("layers", 2**62)
    yield r"h0 has shape \(1, 3, 20\)", put("h0", torch.randn(1, 3, 20))
    yield "c0 is of another dtype than float32", put("c0", torch.randn(4, 3, 20).double())
    yield "lengths has shape", put("lengths", torch.ones(4, dtype=torch.int64))
    yield "lengths is of another dtype than int64", put("lengths", torch.ones(3).int())
    yield "reset_mask has shape", put("reset_mask", torch.zeros(3, 5, dtype=torch.bool))
    yield "reset_mask is of another dtype than bool", put("reset_mask", torch.zeros(5, 3))
    yield r"weights\[3\], scale_hh, has shape \(79\)", change(3, lambda w: w[1:])
    yield r"weights\[3\], scale_hh, has shape \(0\)", change(3, lambda w: w[:0])
    yield r"weights\[1\], scale_ih of layer 0, has shape", change(1, lambda w: w[1:])
    yield "scale_ih of layer 0, is of another dtype than float32", change(1, lambda w: w.double())
    yield "packed_hh of layer 0, is of another dtype than int8", change(2, lambda w: w.float())
    yield r"weights\[9\], bias of layer 0, reverse, has shape", change(9, lambda w: w.view(4, 20))
    yield r"weights\[10\], packed_ih of layer 1, has shape", change(10, lambda w: w[:1])
    yield r"weights\[17\], packed_hh of layer 1, reverse", change(17, lambda w: w[:, :, :2])


@pytest.mark.parametrize(("says", "change"), [pytest.param(*r, id=r[0][:40]) for r in refused()])
def test_refused(says, change):
    layers = problem(1, 1, 9, 20, 2)[3] + problem(1, 1, 40, 20, 2)[3]
    arguments = {
        "x": torch.randn(5, 3, 9),
        "h0": None,
        "c0": None,
        "weights": [w for d in layers for w in d.packed()],
        "layers": 2,
        "lengths": None,
        "reset_mask": None,
    }
    fixed = {
        "bidirectional": True,
        "batch_first": False,
        "weight_only": False,
        "return_cells": True,
    }
    op = torch.ops.fastlstm.int8_stack
    assert all(v.isfinite().all() for v in op(**arguments, **fixed))
    change(arguments)
    with pytest.raises(RuntimeError, match=says):
        op(**arguments, **fixed)


def test_packed_weights_are_what_they_say():
    q = torch.randint(-127, 128, (4 * 18, 7)).to(torch.int8)
    packed = pack(q, 4)
    assert packed.shape == (2, 2, 4, 16, 4)
    assert packed[1, 1, 2, 1, 2] == q[2 * 18 + 17, 6] and packed[1, 1, 2, 2, 2] == 0
