"""A whole stack without a gradient, in one op of its own: its results, and when it serves.

tests/cpu/test_kernels_isa.py runs this file on each instruction set that the machine has.
"""

import pytest
import torch
from masked import MASKS, Masked, masks_of, on_reference
from op_cases import threads
from pairs import ignore_onednn, needs_library, one_thread, pair  # noqa: F401  (a fixture)

from fastlstm import FastLSTM
from fastlstm.stack import whole
from fastlstm.testing import compare

pytestmark = [needs_library, ignore_onednn]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# T, N (None: unbatched), I, H, and what else: few steps from the weights as they lie, gates at
# once, gates in chunks; below, at and beside a vector's width.
CASES = [
    (1, 1, 3, 5, {"num_layers": 2, "bidirectional": True}),
    (4, None, 17, 33, {"bias": False}),
    (3, 8, 40, 31, {"proj_size": 7, "bidirectional": True}),
    (2, 2, 64, 64, {"batch_first": True}),
    (5, 1, 1, 1, {}),
    (6, 9, 18, 47, {"num_layers": 2, "batch_first": True}),
    (9, None, 16, 65, {"proj_size": 13, "num_layers": 2}),
    (13, 3, 33, 20, {"bidirectional": True, "batch_first": True, "bias": False}),
    (40, 30, 5, 70, {"bidirectional": True}),
]


@pytest.fixture
def calls(monkeypatch):
    """How often the op has served."""
    counts, pair = [], whole.PAIRS["lstm"]

    def counted(*args, **options):
        results = pair.forward(*args, **options)
        counts.extend([args] if results else [])
        return results

    monkeypatch.setitem(whole.PAIRS, "lstm", pair._replace(forward=counted))
    return counts


def problem(T, N, I, H, options, dtype=torch.float32):
    lstm, fast = pair(I, H, dtype=dtype, **options)
    rows = () if N is None else (N,)
    lead = (N, T) if lstm.batch_first and N is not None else (T, *rows)
    states = lstm.num_layers * (1 + lstm.bidirectional), *rows
    hx = torch.randn(*states, lstm.proj_size or H), torch.randn(*states, H)
    return lstm, fast, torch.randn(*lead, I).to(dtype), tuple(s.to(dtype) for s in hx)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_errors_are_within_the_budget(case, dtype, calls):
    lstm, fast, x, hx = problem(*case, dtype)
    compare(fast, lstm, x, hx, gradients=False)
    compare(fast, lstm, x, gradients=False)
    assert len(calls) == 2


@torch.no_grad()
@pytest.mark.parametrize("N", [3, 16])
@pytest.mark.parametrize("H", [190, 2048])
def test_a_projection_of_many_units_is_within_the_budget(H, N):
    """By one chain of additions over all of them it is not."""
    for _ in range(3):
        lstm, fast, x, _ = problem(5, N, 8, H, {"proj_size": 33})
        compare(fast, lstm, x, gradients=False)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_masks_cells_and_dropout_are_within_the_budget(case, dtype, calls):
    """Each mask alone, all together, and with dropout between the layers."""
    _, fast, x, hx = problem(*case, dtype)
    fast.dropout = 0.5
    for names in MASKS:
        masks = masks_of(names, fast, x)
        compare(*(Masked(m, masks) for m in (fast, on_reference(fast))), x, hx, gradients=False)
    assert len(calls) == len(MASKS)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES[2:7:2], ids=str)
def test_layout_of_arguments_does_not_matter(case, calls):
    _, fast, x, hx = problem(*case)
    expected = fast(x, hx)
    for name, weight in list(fast._parameters.items()):
        spread = torch.randn(*weight.shape, 2)
        spread[..., 0] = weight
        fast._parameters[name] = torch.nn.Parameter(spread[..., 0])
    apart = [torch.stack([t, t + 1], -1)[..., 0] for t in (x, *hx)]
    torch.testing.assert_close(fast(apart[0], tuple(apart[1:])), expected, rtol=0, atol=0)
    assert len(calls) == 2


@torch.no_grad()
@pytest.mark.parametrize("case", [(3, 2, 40, 90, {}), (60, 1, 30, 100, {"num_layers": 2})], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(case, calls):
    _, fast, x, hx = problem(*case)
    results = []
    for count in (1, 2, 3, 5):
        with threads(count):
            results.append(fast(x, hx))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)
    assert len(calls) == 4


@pytest.mark.parametrize("T", [0, 3, 7])
def test_no_steps_or_no_rows(T, calls):
    with torch.no_grad():
        for N in (0, 2) if T == 0 else (0,):
            _, fast, x, hx = problem(T, N, 4, 6, {"num_layers": 2, "proj_size": 3})
            output, (h_n, c_n) = fast(x, hx)
            assert output.shape == (T, N, 3) and len(calls) == 1
            torch.testing.assert_close((h_n, c_n), hx, rtol=0, atol=0)
            calls.clear()


def test_what_goes_the_general_way(calls):
    """Other layers than plain ones, and every layer's output."""
    for options in ({"zoneout": 0.1}, {"layer_norm": True}, {"return_layer_outputs": True}):
        _, fast, x, hx = problem(5, 2, 3, 4, {"num_layers": 2})
        fast = FastLSTM(3, 4, 2, **options).requires_grad_(False)
        fast(x, hx)
    fast = FastLSTM(3, 4, 2, recurrent_dropout=0.5).requires_grad_(False)
    fast(x, hx)
    assert not calls
    fast.eval()(x, hx)
    assert len(calls) == 1


@torch.no_grad()
def test_masks_that_do_not_fit_are_refused_as_by_the_general_way(calls):
    _, fast, x, hx = problem(3, 2, 4, 6, {"batch_first": True})
    for name, wrong in (
        ("lengths", torch.tensor([1, 4])),
        ("lengths", torch.tensor([-1, 2])),
        ("lengths", torch.tensor([1, 2, 3])),
        ("lengths", torch.tensor([1.0, 2.0])),
        ("lengths", [1, 2]),
        ("lengths", torch.tensor([1, 2], device="meta")),
        ("reset_mask", torch.zeros(3, 2, dtype=torch.bool)),
        ("reset_mask", torch.zeros(2, 3)),
        ("reset_mask", [[False] * 3] * 2),
    ):
        with pytest.raises((ValueError, RuntimeError), match=name if "meta" not in str(wrong) else "meta"):
            fast(x, hx, **{name: wrong})
    assert not calls
    fast(x, hx, lengths=torch.tensor([1, 3], dtype=torch.int32))


@torch.no_grad()
def test_what_does_not_fit_is_refused_as_by_the_general_way(calls):
    lstm, fast, x, hx = problem(3, 2, 4, 6, {})
    for wrong in (
        (x[..., :3], None),
        (x.double(), None),
        (x, (hx[0][:, :1], hx[1])),
        (x, (hx[0].double(), hx[1])),
        (x, (hx[0], hx[1][..., :5])),
    ):
        with pytest.raises((RuntimeError, ValueError)) as of_torch:
            lstm(*wrong)
        with pytest.raises((RuntimeError, ValueError)) as of_fast:
            fast(*wrong)
        assert type(of_fast.value) is type(of_torch.value) or "expected" in str(of_fast.value)
    fast.weight_hh_l0 = torch.nn.Parameter(torch.randn(24, 5))
    with pytest.raises(ValueError, match="weight_hh_l0"):
        fast(x)
    assert not calls


def test_its_shapes_are_known_without_running_it():
    for options in ({}, {"batch_first": True}, {"bidirectional": True, "proj_size": 2}):
        for N in (2, None):
            _, fast, x, hx = problem(5, N, 3, 4, {"num_layers": 2, **options})
            weights = [w.detach() for w in fast.parameters()]
            sizes = 2, fast.bidirectional, fast.batch_first, False
            lead = x.shape[:-1]
            lengths = torch.tensor([5, 2][: N or 1])
            noise = [torch.ones(5, N or 1, 2 * hx[0].shape[-1] if fast.bidirectional else hx[0].shape[-1])]
            masks = lengths, torch.zeros(lead, dtype=torch.bool), noise
            for given, cells in (((None, None, None), False), (masks, True)):
                torch.library.opcheck(
                    torch.ops.fastlstm.lstm_stack_forward.default,
                    (x, *hx, weights, *given, *sizes, cells, True, None),
                    test_utils=("test_schema", "test_faketensor"),
                )
