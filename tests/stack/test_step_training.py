"""Steps with gradients by the ops that take weights as they lie: FastLSTMCell, FastLSTM.step.

tests/cpu/test_kernels_isa.py runs this file on each instruction set that the machine has.
"""

import pytest
import torch
from cell_steps import Calls, InSteps, by_cells, cell_problem, outputs_of, problem
from op_cases import threads
from pairs import ignore_onednn, needs_library, one_thread  # noqa: F401  (a fixture)

from fastlstm import FastLSTM
from fastlstm.testing import compare

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_empty"), ignore_onednn]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# N rows (None: unbatched), I, H, and what else: below, at and beside a vector's width, and rows
# for products with the weights as they lie and for large ones.
CASES = [
    (None, 1, 1, {}),
    (1, 3, 5, {"num_layers": 3}),
    (2, 17, 33, {"bias": False}),
    (3, 64, 64, {"num_layers": 2, "proj_size": 19}),
    (5, 40, 65, {"proj_size": 7, "bias": False}),
    (8, 130, 31, {"num_layers": 2}),
    (None, 16, 129, {"proj_size": 128}),
    (9, 19, 40, {"num_layers": 2}),
    (70, 33, 66, {"bias": False}),
]


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_errors_are_within_the_budget(case, dtype, calls):
    lstm, fast, x, hx = problem(*case, dtype)
    few = case[0] is None or case[0] <= 8 or dtype in (torch.float32, torch.float64)
    layers = lstm.num_layers
    for given in (hx, None):
        compare(InSteps(fast), lstm, x, given)
        assert calls.taken() == (3 * layers * few, 3 * layers * few, layers * few)
    if layers == 1 and not lstm.proj_size:
        compare(by_cells(lstm, dtype=dtype), lstm, x, hx)
        assert calls.taken() == (3 * few, 3 * few, few)


# Eleven rows with a projection go the general way.
@pytest.mark.parametrize(("N", "proj_size"), [(None, 0), (2, 0), (11, 0), (None, 2), (2, 2)])
def test_gradients_of_gradients(N, proj_size):
    _, fast, x, hx = problem(N, 3, 4, {"proj_size": proj_size}, torch.float64, T=2)
    leaves = [t.detach().requires_grad_() for t in (x, *hx, *fast.parameters())]
    names = [name for name, _ in fast.named_parameters()]

    def run(x, h, c, *weights):
        # As leaves they are, which functional_call's are not.
        for name, w in zip(names, weights, strict=True):
            fast._parameters[name] = w
        output, states = InSteps(fast)(x, (h, c))
        return output, *states

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("N", [None, 2, 11])
def test_jacobians_by_vmap_of_a_backward(N):
    plain, fast, _ = cell_problem()
    xs = torch.randn(3, 5) if N is None else torch.randn(3, N, 5)
    found = []
    for cell in (plain, fast):
        y = outputs_of(cell, xs).flatten()[:4]
        found.append(torch.autograd.grad(y, list(cell.parameters()), torch.eye(4), is_grads_batched=True))
    torch.testing.assert_close(found[1], found[0])


def test_outputs_may_be_changed_in_place_and_share_no_memory():
    for N in (3, 12):
        plain, fast, xs = cell_problem(N=N)
        found = []
        for cell in (plain, fast):
            h, c = cell(xs[0])
            h.mul_(2)
            c.add_(1)
            found.append(torch.autograd.grad(h.sum() + c.square().sum(), list(cell.parameters())))
        torch.testing.assert_close(found[1], found[0])
        given = [*fast.parameters(), xs]
        grads = [g for g in found[1] if g is not None]
        made = [h, c, *grads]
        assert len({t.untyped_storage().data_ptr() for t in (*given, *made)}) == len(given) + len(made)
    module = FastLSTM(5, 7)
    y, (h_n, c_n) = module.step(xs[0])
    assert len({t.untyped_storage().data_ptr() for t in (y, h_n, c_n)}) == 3


def test_the_number_of_rows_may_change_from_step_to_step():
    plain, fast, _ = cell_problem()
    found = []
    xs = [torch.randn(n, 5) for n in (12, 9, 5, 1, 0)]
    for cell in (plain, fast):
        state, total = (torch.ones(12, 7), torch.ones(12, 7)), 0
        for x in xs:
            state = cell(x, tuple(s[: len(x)] for s in state))
            total = total + state[0].sum()
        found.append(torch.autograd.grad(total, list(cell.parameters())))
    torch.testing.assert_close(found[1], found[0])


def test_many_rows_are_summed_in_pieces():
    lstm, _, x, hx = problem(300, 20, 24, {}, T=4)
    compare(by_cells(lstm), lstm, x, hx)


@pytest.mark.parametrize("N", [1, 7, 20])
def test_any_number_of_threads_gives_the_same_bits(N):
    _, fast, x, hx = problem(N, 300, 333, {"num_layers": 2})
    leaves = [t.requires_grad_() for t in (x, *hx)]

    def step():
        y, states = InSteps(fast)(x, hx)
        total = y.sum() + sum(s.sum() for s in states)
        return y.detach(), *torch.autograd.grad(total, [*leaves, *fast.parameters()])

    with threads(1):
        expected = step()
    for count in (2, 3, 5):
        with threads(count):
            torch.testing.assert_close(step(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", [(None, False), (3, True), (11, False)], ids=str)
def test_the_ops_are_sound(case):
    N, projected = case
    lead, I, H = () if N is None else (N,), 5, 7
    P = 3 if projected else H
    x, h, c = torch.randn(*lead, I), torch.randn(*lead, P), torch.randn(*lead, H)
    matrices = torch.randn(4 * H, I), torch.randn(4 * H, P)
    hr = torch.randn(P, H) if projected else None
    biases = torch.randn(4 * H), torch.randn(4 * H)
    ops = torch.ops.fastlstm
    tests = {"test_utils": ("test_schema", "test_faketensor")}

    def checked(op, *args):
        torch.library.opcheck(op.default, args, **tests)
        return op(*args)

    h_n, _, cells, gates = checked(ops.lstm_cell_training_forward, x, h, c, *matrices, *biases, hr)
    *_, dgates, unprojected = checked(
        ops.lstm_cell_training_backward,
        h_n,
        None,
        c,
        cells,
        gates,
        *matrices,
        hr,
        True,
        True,
        False,
    )
    more = ([h_n], [unprojected]) if projected else ([], [])
    needs = [True, True, False, True, projected]
    checked(ops.lstm_cell_weight_gradients, [dgates], [x], [h], *more, needs)


def test_errors_are_those_of_the_general_way():
    plain, fast, xs = cell_problem()
    state = torch.randn(3, 7), torch.randn(3, 7)
    wrong = [
        (xs[0, :, :4], None),
        (xs[0], (state[0][:2], state[1])),
        (xs, None),
        (xs[0].long(), None),
    ]
    for x, hx in wrong:
        errors = []
        for cell in (plain, fast):
            with pytest.raises((RuntimeError, AssertionError, ValueError)) as caught:
                cell(x, hx)
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]
    module = FastLSTM(5, 7)
    with pytest.raises(RuntimeError, match=r"size|shape"):
        module.step(xs[0, :, :4])
    with pytest.raises((RuntimeError, ValueError)):
        module.step(xs[0], (state[0][None], state[1][None, :2]))
