"""One step without a gradient: the ops that take weights as they lie, and when they are used.

tests/cpu/test_kernels_isa.py runs this file on each instruction set that the machine has.
"""

import multiprocessing
import threading

import pytest
import torch
from op_cases import threads
from pairs import ignore_onednn, needs_library, one_thread, pair  # noqa: F401  (a fixture)
from torch import nn
from torch.nn.utils import prune

from fastlstm import FastLSTM, FastLSTMCell
from fastlstm.nn.shortcuts import MOST_ROWS
from fastlstm.stack import step as step_op
from fastlstm.testing import compare

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_empty"), ignore_onednn]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# N rows (None: unbatched), I, H, and what else: below, at and beside a vector's width.
CASES = [
    (None, 1, 1, {}),
    (1, 3, 5, {"num_layers": 3}),
    (2, 17, 33, {"bias": False}),
    (3, 64, 64, {"num_layers": 2, "proj_size": 19}),
    (5, 40, 65, {"proj_size": 7, "bias": False}),
    (8, 130, 31, {"num_layers": 2}),
    (None, 16, 129, {"proj_size": 128}),
]


@pytest.fixture
def calls(monkeypatch):
    """How often each op has run."""
    counts = {"lstm_step": 0, "lstm_cell": 0}

    def counted(name, op):
        def call(*args):
            counts[name] += 1
            return op(*args)

        return call

    for name in counts:
        monkeypatch.setattr(step_op, name, counted(name, getattr(step_op, name)))
    return counts


def in_steps(fast):
    def run(input, hx=None):
        outputs = []
        for x_t in input:
            y, hx = fast.step(x_t, hx)
            outputs.append(y)
        return torch.stack(outputs), hx

    return run


def problem(N, I, H, options, dtype=torch.float32, T=3):
    lstm, fast = pair(I, H, dtype=dtype, **options)
    lead = () if N is None else (N,)
    L, P = lstm.num_layers, lstm.proj_size or H
    hx = torch.randn(L, *lead, P).to(dtype), torch.randn(L, *lead, H).to(dtype)
    return lstm, fast, torch.randn(T, *lead, I).to(dtype), hx


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_errors_are_within_the_budget(case, dtype, calls):
    lstm, fast, x, hx = problem(*case, dtype)
    compare(in_steps(fast), lstm, x, hx, gradients=False)
    compare(in_steps(fast), lstm, x, gradients=False)
    assert calls["lstm_step"] == 6
    if "proj_size" in case[3]:
        return
    cell = FastLSTMCell(case[1], case[2], bias=lstm.bias, dtype=dtype)
    cell.load_state_dict({name[:-3]: w for name, w in lstm.state_dict().items() if "_l0" in name})
    one_layer = nn.LSTM(case[1], case[2], bias=lstm.bias, dtype=dtype)
    one_layer.load_state_dict(cell.state_dict().__class__((f"{name}_l0", w) for name, w in cell.state_dict().items()))

    def as_lstm(input, hx=None):
        hx = hx and (hx[0][0], hx[1][0])
        outputs = []
        for x_t in input:
            hx = cell(x_t, hx)
            outputs.append(hx[0])
        return torch.stack(outputs), (hx[0].unsqueeze(0), hx[1].unsqueeze(0))

    compare(as_lstm, one_layer, x, (hx[0][:1], hx[1][:1]), gradients=False)
    assert calls["lstm_cell"] == 3


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(case):
    N, I, H, options = case
    _, fast, x, hx = problem(N, 8 * I + 500, 8 * H + 300, options)
    with torch.no_grad(), threads(1):
        expected = fast.step(x[0], hx)
    for count in (2, 3, 5):
        with torch.no_grad(), threads(count):
            for _ in range(3):
                got = fast.step(x[0], hx)
                torch.testing.assert_close(got, expected, rtol=0, atol=0)


@torch.no_grad()
def test_numbers_that_are_not_finite_spread_as_in_torch():
    """A lane that stands in for one that is not there must not bring in 0 times infinity."""
    bad = (float("inf"), float("nan"), -float("inf"), 3e38)
    for I in (3, 16, 17, 31, 40):
        lstm, fast = pair(I, 18, dtype=torch.float32)
        for k, value in zip((0, I - 1, I // 2, 1), bad, strict=True):
            for weights in (True, False):
                x, kept = torch.randn(1, 2, I), lstm.weight_ih_l0.clone()
                if weights:
                    lstm.weight_ih_l0[5 + k % 7, k] = fast.weight_ih_l0[5 + k % 7, k] = value
                else:
                    x[0, 1, k] = value
                expected, got = lstm(x)[0][0], fast.step(x[0])[0]
                torch.testing.assert_close(got, expected, equal_nan=True)
                lstm.weight_ih_l0.copy_(kept)
                fast.weight_ih_l0.copy_(kept)


@torch.no_grad()
def test_a_weight_may_change_in_any_way_between_calls(calls):
    lstm, fast = pair(5, 7)
    x = torch.randn(2, 5)

    def same():
        torch.testing.assert_close(fast.step(x)[0], lstm(x[None])[0][0])

    same()
    for module in (lstm, fast):
        module.weight_hh_l0.data.mul_(2)
        module.weight_ih_l0.detach().numpy()[:] *= 3
        module.bias_ih_l0.zero_()
    same()
    for module in (lstm, fast):
        prune.random_unstructured(module, "weight_ih_l0", 0.5)
    lstm.weight_ih_l0_mask.copy_(fast.weight_ih_l0_mask)
    assert calls["lstm_step"] == 2
    same()  # through the hook
    assert calls["lstm_step"] == 2


@torch.no_grad()
def test_results_are_new_memory_and_arguments_may_have_any_strides(calls):
    _, fast, x, (h, c) = problem(4, 6, 9, {"num_layers": 2})
    expected = fast.step(x[0], (h, c))
    y, (h_n, c_n) = fast.step(x[0], (h, c))
    given = [x, h, c, *fast.parameters()]
    assert len({t.untyped_storage().data_ptr() for t in (y, h_n, c_n, *given)}) == 3 + len(given)
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (x[0], h, c)]
    for name, w in list(fast.named_parameters()):
        if w.dim() == 2:
            setattr(fast, name, nn.Parameter(w.t().contiguous().t()))
    torch.testing.assert_close(fast.step(strided[0], strided[1:]), expected, rtol=0, atol=0)
    assert calls["lstm_step"] == 3


@pytest.mark.filterwarnings("ignore:fastlstm runs .* slow reference backend:RuntimeWarning")
def test_what_needs_more_than_the_op_takes_the_general_way(calls):
    lstm, fast, x, hx = problem(3, 5, 7, {"num_layers": 2})
    expected = lstm(x[:1], hx)
    y, _ = fast.step(x[0], hx)
    torch.testing.assert_close(y, expected[0][0])
    grads = torch.autograd.grad(y.sum(), list(fast.parameters()))
    for got, wanted in zip(grads, torch.autograd.grad(expected[0].sum(), list(lstm.parameters())), strict=True):
        torch.testing.assert_close(got, wanted)

    class Doubled(FastLSTM):
        def forward(self, *args, **options):
            y, state = super().forward(*args, **options)
            return 2 * y, state

    doubled = Doubled(5, 7, 2)
    doubled.load_state_dict(fast.state_dict())
    patched = FastLSTM(5, 7, 2)
    patched.load_state_dict(fast.state_dict())
    inner = patched.forward
    patched.forward = lambda *args: (2 * inner(*args)[0], None)
    dropping = FastLSTM(5, 7, 2, dropout=1.0)
    dropping.load_state_dict(fast.state_dict())
    with torch.no_grad():
        for module in (doubled, patched):
            torch.testing.assert_close(module.step(x[0], hx)[0], 2 * expected[0][0])
        assert (dropping.step(x[0], hx)[0] - expected[0][0]).abs().max() > 0
        with torch.autocast("cpu", torch.bfloat16):
            assert fast.step(x[0], hx)[0].dtype == torch.bfloat16
        many = torch.randn(MOST_ROWS + 1, 5)
        torch.testing.assert_close(fast.step(many)[0], lstm(many[None])[0][0])
        assert FastLSTM(5, 7, backend="reference").step(x[0])[0].shape == (3, 7)
        mapped = torch.vmap(lambda row: fast.step(row)[0], randomness="same")(x[0])
        torch.testing.assert_close(mapped, lstm(x[:1])[0][0])
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x[0], torch.ones_like(x[0]))
            y, _ = fast.step(dual)
            assert torch.autograd.forward_ad.unpack_dual(y).tangent.abs().max() > 0
        for variant in ({"layer_norm": True}, {"zoneout": 0.2}, {"weight_dropout": 0.5}):
            module = FastLSTM(5, 7, **variant)
            torch.manual_seed(1)
            y, _ = module.step(x[0])
            torch.manual_seed(1)
            torch.testing.assert_close(y, module(x[:1])[0][0])
    assert calls["lstm_step"] == 0
    with torch.no_grad():
        dropping.eval().step(x[0], hx)
    assert calls["lstm_step"] == 1


@torch.no_grad()
def test_compiled(calls):
    _, fast, x, hx = problem(2, 5, 7, {})
    cell = FastLSTMCell(5, 7)
    expected, expected_cell = fast.step(x[0], hx), cell(x[0])
    step = torch.compile(fast.step, backend="eager")
    torch.testing.assert_close(step(x[0], hx), expected)
    torch.testing.assert_close(torch.compile(cell, backend="eager")(x[0]), expected_cell)


@torch.no_grad()
def test_errors_are_those_of_the_general_way():
    lstm, fast, x, (h, c) = problem(2, 5, 7, {})
    wrong = [
        (x[0, :, :4], (h, c)),
        (x[0].double(), (h, c)),
        (x[0], (h[:, :1], c)),
        (x[0], (h, c[..., :5])),
        (x[0], (h[0], c[0])),
        (x[0, 0], (h, c)),
    ]
    for x_t, state in wrong:
        with pytest.raises((RuntimeError, ValueError)) as expected:
            lstm(x_t.unsqueeze(0), state)
        with pytest.raises(type(expected.value)) as got:
            fast.step(x_t, state)
        assert str(got.value) == str(expected.value)
    with pytest.raises(ValueError, match=r"hx\[1\] \(c0\): got dtype torch.float64"):
        fast.step(x[0], (h, c.double()))
    cell, fast_cell = nn.LSTMCell(5, 7), FastLSTMCell(5, 7)
    for x_t, state in [(x[0, :, :4], None), (x[0], (h[0, :1], c[0])), (x[0], (h[0], c[0, :, :3]))]:
        with pytest.raises(RuntimeError) as expected:
            cell(x_t, state)
        with pytest.raises(RuntimeError) as got:
            fast_cell(x_t, state)
        assert str(got.value) == str(expected.value)
    narrow = FastLSTM(5, 7)
    narrow.weight_hh_l0 = nn.Parameter(torch.zeros(28, 6))
    with pytest.raises(ValueError, match="weight_hh_l0: got shape"):
        narrow.step(x[0])


@torch.no_grad()
def test_the_ops_are_sound_and_have_a_slow_form():
    for N, I, H, options in CASES[:5]:
        _, fast, x, (h, c) = problem(N, I, H, options, torch.float64)
        arguments = x[0], h, c, [p.detach() for p in fast.parameters()]
        expected = step_op.lstm_step(*arguments)
        torch.testing.assert_close(list(step_op._step(step_op.Step(*arguments))), expected)
        torch.library.opcheck(torch.ops.fastlstm.lstm_step.default, arguments)
    x, h, c, *weights = (torch.randn(*s) for s in [(2, 3), (2, 4), (2, 4), (16, 3), (16, 4), (16,)])
    for biases in [(weights[2], None), (None, weights[2]), (None, None)]:
        arguments = x, h, c, *weights[:2], *biases
        slow = list(step_op._cell(step_op.Cell(*arguments)))
        torch.testing.assert_close(slow, step_op.lstm_cell(*arguments))
        torch.library.opcheck(torch.ops.fastlstm.lstm_cell.default, arguments)
    rows = torch.zeros(9, 3), torch.zeros(1, 9, 4), torch.zeros(1, 9, 4)  # one more than it takes
    assert step_op.lstm_step(*rows, weights[:2]) == []


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
def test_steps_from_many_threads(count):
    """Six Python threads share one module and step each its own stream, as a server does."""
    _, fast, x, _ = problem(2, 70, 260, {"num_layers": 2}, T=6 * 8)
    streams = x.view(6, 8, 2, 70)
    with threads(count):
        expected = [in_steps(fast)(stream)[0] for stream in streams]
        got, start = [None] * 6, threading.Barrier(6)

        def work(k):
            torch.set_num_threads(count)  # a setting of each thread's own OpenMP pool
            with torch.no_grad():
                start.wait()
                got[k] = in_steps(fast)(streams[k])[0]

        workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def _in_child(fast, x, expected, queue):
    torch.set_num_threads(1)
    with torch.no_grad():
        queue.put(torch.equal(fast.step(x)[0], expected))


# Python 3.12 warns of any fork beside threads, which is what is tested here.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_a_fork_after_use_works_on_one_thread():
    _, fast, x, _ = problem(2, 600, 300, {})
    with torch.no_grad(), threads(2):
        expected = fast.step(x[0])[0]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(fast, x[0], expected, queue))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        child.join()
        pytest.fail("the child hangs")
    assert child.exitcode == 0 and queue.get()
