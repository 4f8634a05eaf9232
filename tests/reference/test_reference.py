"""The reference against nn.LSTM, and against a loop over nn.LSTMCell that has masks in words."""

import itertools

import pytest
import torch
from chunks_of_steps import check_chunks_of_steps
from op_cases import Case
from torch import nn

from fastlstm.reference import backward as reference_backward
from fastlstm.reference import lstm as reference

T, N, I, H = 6, 4, 3, 5
EXACT = {"rtol": 0, "atol": 1e-13}  # of sums of a few numbers of size 1


def problem(D, P):
    """An nn.LSTM, its input, and gates_x, h0, c0, weight_hh, weight_hr of the two."""
    lstm = nn.LSTM(I, H, bidirectional=D == 2, proj_size=P or 0, dtype=torch.float64)
    x = torch.randn(T, N, I, dtype=torch.float64)
    h0 = torch.randn(D, N, P or H, dtype=torch.float64)
    c0 = torch.randn(D, N, H, dtype=torch.float64)
    weights = [dict(zip(lstm._all_weights[0], lstm.all_weights[d], strict=True)) for d in range(D)]
    names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0"
    ih, hh, b_ih, b_hh = ([w[k] for w in weights] for k in names[:4])
    gates_x = torch.stack([x @ ih[d].t() + b_ih[d] + b_hh[d] for d in range(D)], dim=2)
    weight_hr = torch.stack([w[names[4]] for w in weights]) if P else None
    arguments = [gates_x, h0, c0, torch.stack(hh), weight_hr]
    return lstm, x, [a if a is None else a.detach().requires_grad_() for a in arguments]


@pytest.mark.parametrize(("D", "P"), [(1, None), (1, 2), (2, None), (2, 2)])
def test_agrees_with_torch(D, P):
    lstm, x, arguments = problem(D, P)
    _, h0, c0, *_ = arguments
    output, h_n, c_n, cells, _ = reference.lstm_forward(*arguments)
    expected, states = lstm(x, (h0, c0))
    torch.testing.assert_close((output, h_n, c_n), (expected, *states), **EXACT)
    torch.testing.assert_close(cells[-1, :, 0], c_n[0], rtol=0, atol=0)


def cell_loop(arguments, lengths, reset_mask):
    """Row by row and step by step: output, h_n, c_n, cells (T, N, D, H)."""
    gates_x, h0, c0, weight_hh, weight_hr = arguments
    D, P = h0.shape[0], h0.shape[-1]
    output, cells = torch.zeros(T, N, D, P).double(), torch.zeros(T, N, D, H).double()
    h_n, c_n = torch.zeros_like(h0), torch.zeros_like(c0)
    # A cell whose inputs are its 4H gates, with W_hh h given as a bias, h projected by hand.
    cell = nn.LSTMCell(4 * H, H, dtype=torch.float64)
    fixed = {
        "weight_ih": torch.eye(4 * H, dtype=torch.float64),
        "weight_hh": torch.zeros(4 * H, H, dtype=torch.float64),
        "bias_hh": torch.zeros(4 * H, dtype=torch.float64),
    }
    unused = torch.zeros(H, dtype=torch.float64)
    for d, n in itertools.product(range(D), range(N)):
        steps = range(T if lengths is None else int(lengths[n]))
        h, c = h0[d, n], c0[d, n]
        for t in reversed(steps) if d else steps:
            # The boundary through which this step is entered lies before t, or in reverse before
            # t + 1; behind a row's last step is none.
            boundary = t + 1 if d else t
            if reset_mask is not None and boundary in steps and reset_mask[boundary, n]:
                h, c = torch.zeros_like(h), torch.zeros_like(c)
            parameters = {**fixed, "bias_ih": weight_hh[d] @ h}
            h, c = torch.func.functional_call(cell, parameters, (gates_x[t, n, d], (unused, c)))
            h = h if weight_hr is None else weight_hr[d] @ h
            output[t, n, d], cells[t, n, d] = h, c
        h_n[d, n], c_n[d, n] = h, c
    return output.flatten(2), h_n, c_n, cells


LENGTHS = {
    "no lengths": None,
    "lengths": torch.tensor([4, 0, 6, 1]),
    "full": torch.full((N,), T),
    "zero": torch.zeros(N, dtype=torch.int64),
}
RESETS = {
    "no resets": None,
    "first step": torch.arange(T)[:, None].expand(T, N) == 0,
    "last step": torch.arange(T)[:, None].expand(T, N) == T - 1,
    "everywhere": torch.ones(T, N, dtype=torch.bool),
    "nowhere": torch.zeros(T, N, dtype=torch.bool),
    "some": torch.rand(T, N, generator=torch.Generator().manual_seed(0)) < 0.4,
    "behind the lengths": torch.arange(T)[:, None] == torch.tensor([4, 0, 6, 1]),
}


@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("D", "P"), [(1, None), (2, None), (2, 2)])
def test_agrees_with_a_loop_over_cells(D, P, lengths, resets):
    _, _, arguments = problem(D, P)
    masks = LENGTHS[lengths], RESETS[resets]
    leaves = [a for a in arguments if a is not None]
    results = reference.lstm_forward(*arguments, *masks)
    expected = cell_loop(arguments, *masks)
    torch.testing.assert_close(results[:4], expected, **EXACT)
    weights = [torch.randn_like(e) for e in expected]
    grads, wanted = (
        torch.autograd.grad(
            sum((w * r).sum() for w, r in zip(weights, found, strict=True)),
            leaves,
            allow_unused=True,
            materialize_grads=True,
        )
        for found in (results[:4], expected)
    )
    torch.testing.assert_close(grads, wanted, **EXACT)


@pytest.mark.parametrize("resets", ["no resets", "some"])
@pytest.mark.parametrize("lengths", ["no lengths", "lengths"])
@pytest.mark.parametrize(("D", "P"), [(1, None), (2, 2)])
def test_backward_rule_is_the_derivative(D, P, lengths, resets):
    """`lstm_backward`, written by hand, against autograd through `lstm_forward`."""
    _, _, arguments = problem(D, P)
    masks = LENGTHS[lengths], RESETS[resets]
    results = reference.lstm_forward(*arguments, *masks)
    *grads, dgates_out = [torch.randn_like(r) for r in results]
    wanted = torch.autograd.grad(results, arguments[:3], [*grads, dgates_out])
    _, h0, c0, weight_hh, weight_hr = arguments
    given = [*grads, dgates_out, h0, c0, weight_hh, weight_hr, results[3], results[4]]
    got = reference_backward.lstm_backward(*given, *masks, False)
    torch.testing.assert_close(got[:3], wanted, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_cells_in_float32(dtype):
    """A cell that gains 2^-12 a step: 16 bits of it would stand still from 1 on."""
    steps, gain = 256, 2.0**-12
    g = torch.atanh(torch.tensor(gain))
    gates_x = torch.tensor([60.0, 60.0, float(g), 0.0]).expand(steps, 1, 1, 4)
    states = torch.zeros(1, 1, 1, dtype=dtype), torch.ones(1, 1, 1, dtype=dtype)
    cells = reference.lstm_forward(gates_x, *states, torch.zeros(1, 4, 1, dtype=dtype))[3]
    assert cells.dtype == torch.float32
    torch.testing.assert_close(cells[-1].item(), 1 + steps * gain, rtol=1e-5, atol=0)


def test_no_steps_give_the_states_back():
    _, _, (gates_x, *rest) = problem(2, 2)
    output, h_n, c_n, cells, gates = reference.lstm_forward(gates_x[:0], *rest)
    assert torch.equal(h_n, rest[0]) and torch.equal(c_n, rest[1])
    assert output.shape == (0, N, 4) and cells.shape == (0, N, 2, H)
    assert gates.shape == (0, N, 2, 4 * H)


@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_sequence_cut_in_chunks(dtype, P):
    sizes = {"T": 7, "N": 4, "H": 5, "P": P, "dtype": dtype}
    check_chunks_of_steps(Case("recurrence", masks="random", **sizes), "reference", at=3)
    check_chunks_of_steps(Case("recurrence", gradients=0b0110, **sizes), "reference", at=6)
