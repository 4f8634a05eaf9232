"""What lengths and reset_mask mean, by what they must be equal to, forward and backward."""

import itertools

import pytest
import torch
from op_cases import Case, backward, draw, forward, tape_of, to
from pairs import needs_library

FAMILIES = [pytest.param("lstm", marks=needs_library), "reference"]
ENTRIES = ["recurrence", "layer"]
T, N = 6, 5
LENGTHS = torch.tensor([4, 0, 6, 1, 5])
SEQUENCES = {"gates_x", "dgates_x", "x", "dx", "output", "cells", "gates", "dhidden", "doutput"}
every = [
    pytest.mark.parametrize("family", FAMILIES),
    pytest.mark.parametrize("entry", ENTRIES),
    pytest.mark.parametrize(("D", "P"), [(1, None), (2, None), (2, 3)]),
]


def everywhere(test):
    for mark in every:
        test = mark(test)
    return test


def problem(entry, D, P, dtype=torch.float64):
    """A case, its arguments without masks, and its gradients."""
    case = Case(entry, T=T, N=N, H=17, I=4, P=P, D=D, dtype=dtype, wide=True)
    arguments, gradients = (to(dtype, part) for part in draw(case))
    return case, arguments[:-2], gradients


def run(case, family, inputs, gradients, lengths=None, reset_mask=None):
    arguments = [*inputs, lengths, reset_mask]
    results = forward(case, family, arguments)
    return results | backward(case, family, arguments, gradients, tape_of(results))


def assert_same(got, expected, names=None, **tolerance):
    for name in names or expected:
        torch.testing.assert_close(got[name], expected[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


BITWISE = {"rtol": 0, "atol": 0, "equal_nan": True}
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 sums of numbers of size 1 in another order


@everywhere
def test_masks_that_say_nothing(entry, D, P, family):
    case, *given = problem(entry, D, P)
    plain = run(case, family, *given)
    full, never = torch.full((N,), T), torch.zeros(T, N, dtype=torch.bool)
    # The reference's products are torch's, whose bits may depend on where their factors lie.
    names = list(plain) if family == "lstm" else []
    for masks in ((full, None), (None, never), (full, never)):
        got = run(case, family, *given, *masks)
        assert_same(got, plain, **EXACT)
        for name in names:
            assert_same(got, plain, [name], **BITWISE)


@everywhere
def test_lengths_are_clamped(entry, D, P, family):
    case, *given = problem(entry, D, P)
    expected = run(case, family, *given, LENGTHS)
    for below, above in ((-1, T + 1), (-(2**62), 2**62)):
        wild = torch.where(LENGTHS == 0, below, torch.where(LENGTHS == T, above, LENGTHS))
        assert_same(run(case, family, *given, wild), expected, **BITWISE)


@everywhere
def test_a_length_is_a_shorter_row(entry, D, P, family):
    case, inputs, gradients = problem(entry, D, P)
    got = run(case, family, inputs, gradients, LENGTHS)
    totals = {k: torch.zeros_like(v) for k, v in got.items() if k.startswith(("dweight", "dbias"))}
    for n, length in enumerate(LENGTHS.tolist()):
        x, h0, c0, *weights = inputs
        alone = [x[:length, n : n + 1], h0[:, n : n + 1], c0[:, n : n + 1], *weights]
        doutput, dh_n, dc_n, dcells = (g[:, n : n + 1] for g in gradients)
        one = run(case, family, alone, [doutput[:length], dh_n, dc_n, dcells[:length]])
        for name, value in one.items():
            if name in totals:
                totals[name] += value
            elif value.dim() > 1:
                mine = got[name][:, n : n + 1]
                if name in SEQUENCES:
                    assert not mine[length:].any(), f"{name}: not 0 in the padding of row {n}"
                    mine = mine[:length]
                torch.testing.assert_close(mine, value, **EXACT)
    assert_same(got, totals, totals, **EXACT)


@everywhere
def test_a_reset_begins_a_new_sequence(entry, D, P, family):
    """Resets of all rows at once: the same as calls for the parts, with zeros between them."""
    case, inputs, gradients = problem(entry, D, P)
    cuts = [0, 3, 4, T]
    reset_mask = torch.zeros(T, N, dtype=torch.bool)
    reset_mask[cuts[:-1]] = True
    got = run(case, family, inputs, gradients, None, reset_mask)
    (x, h0, c0, *weights), (doutput, dh_n, dc_n, dcells) = inputs, gradients
    totals = {k: torch.zeros_like(v) for k, v in got.items() if k.startswith(("dweight", "dbias"))}
    dh0, dc0 = torch.zeros_like(h0), torch.zeros_like(c0)
    for begin, end in itertools.pairwise(cuts):
        # Which directions enter a part with h0 (the forward one enters none so), and which of them
        # leave it with h_n.
        first = torch.tensor([False, end == T])[:D].view(D, 1, 1)
        last = torch.tensor([end == T, begin == 0])[:D].view(D, 1, 1)
        part = slice(begin, end)
        one = run(
            case,
            family,
            [x[part], h0 * first, c0 * first, *weights],
            [doutput[part], dh_n * last, dc_n * last, dcells[part]],
        )
        dh0 += one["dh0"] * first
        dc0 += one["dc0"] * first
        for name, value in one.items():
            if name in totals:
                totals[name] += value
            elif name in SEQUENCES and value.dim() > 1:
                torch.testing.assert_close(got[name][part], value, **EXACT)
    assert_same(got, {"dh0": dh0, "dc0": dc0, **totals}, **EXACT)


@everywhere
def test_nothing_is_read_from_the_padding(entry, D, P, family):
    case, inputs, gradients = problem(entry, D, P)
    expected = run(case, family, inputs, gradients, LENGTHS)
    padding = torch.arange(T)[:, None] >= LENGTHS
    x, *rest = inputs
    doutput, dh_n, dc_n, dcells = gradients
    for value in (float("nan"), float("inf")):
        poisoned = x.clone(), doutput.clone(), dcells.clone()
        for sequence in poisoned:
            sequence[padding] = value
        got = run(
            case,
            family,
            [poisoned[0], *rest],
            [poisoned[1], dh_n, dc_n, poisoned[2]],
            LENGTHS,
        )
        assert_same(got, expected, **BITWISE)


@everywhere
def test_nothing_crosses_a_reset(entry, D, P, family):
    """What is not a number stays on its side of a boundary, in the results and in the gradients."""
    case, inputs, gradients = problem(entry, D, P)
    boundary = 2
    reset_mask = torch.zeros(T, N, dtype=torch.bool)
    reset_mask[boundary] = True
    plain = run(case, family, inputs, gradients, None, reset_mask)
    for side in (slice(0, boundary), slice(boundary, T)):
        poisoned = inputs[0].clone()
        poisoned[side] = float("nan")
        got = run(case, family, [poisoned, *inputs[1:]], gradients, None, reset_mask)
        other = slice(boundary, T) if side.start == 0 else slice(0, boundary)
        for name in SEQUENCES & plain.keys():
            if plain[name].dim() > 1:
                torch.testing.assert_close(got[name][other], plain[name][other], **BITWISE)
                assert got[name][side].isnan().any()


@everywhere
def test_rows_are_alone(entry, D, P, family):
    """A row that is not a number changes no other row."""
    case, inputs, gradients = problem(entry, D, P)
    plain = run(case, family, inputs, gradients, LENGTHS)
    poisoned = inputs[0].clone()
    poisoned[:, 2] = float("nan")
    got = run(case, family, [poisoned, *inputs[1:]], gradients, LENGTHS)
    others = [n for n in range(N) if n != 2]
    for name, value in plain.items():
        if not name.startswith(("dweight", "dbias")) and value.dim() > 1:
            torch.testing.assert_close(got[name][:, others], value[:, others], **BITWISE)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_of_any_strides(family):
    case, *given = problem("recurrence", 2, None)
    resets = torch.rand(T, N) < 0.3
    strided = resets.t().contiguous().t(), LENGTHS.repeat_interleave(2)[::2]
    assert not strided[0].is_contiguous() and not strided[1].is_contiguous()
    expected = run(case, family, *given, LENGTHS, resets)
    assert_same(run(case, family, *given, strided[1], strided[0]), expected, **BITWISE)
    for narrow in (resets[:, :1], resets[:1]):
        expected = run(case, family, *given, None, narrow.expand(T, N).contiguous())
        assert_same(run(case, family, *given, None, narrow.expand(T, N)), expected, **BITWISE)
