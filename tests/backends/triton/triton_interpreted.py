"""The Triton kernels in Triton's interpreter, on CPU tensors, against the float64 reference.

`test_triton_interpreter.py` runs this file in a process of its own, with TRITON_INTERPRET=1: that
is read when kernels are decorated. What the interpreter cannot show: programs and threads run one
after the other, so a missing barrier is not seen; products of TF32 numbers are made in float32,
which is exact, and not by a tensor core; shared memory and layouts do not exist.
"""

import warnings

import pytest
import torch
import triton
import triton.language as tl
from chunks_of_steps import check_chunks_of_steps
from op_cases import Case, backward, by_id, check, draw, forward, tape_of
from triton.runtime.errors import InterpreterError

from fastlstm import precision
from fastlstm.backends import gpu
from fastlstm.backends.triton import cell, configs, rounding

assert triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 has to be set before this starts"


@triton.jit
def loop_kernel(x, T):
    for s in tl.range(0, T):
        tl.store(x + s, s)


# The interpreter of Triton 3.6 and before takes an array of one number for a number, which NumPy
# 2.3 warns of and NumPy 2.4 refuses.
old_loops = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("poisoned_empty"), old_loops]
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loop_kernel[(1,)](torch.zeros(4, dtype=torch.int32), 3)
except InterpreterError as error:
    if "0-dimensional" not in str(error):
        raise
    pytest.skip(f"Triton {triton.__version__} interprets no loops under this NumPy", allow_module_level=True)

gpu.register("triton", gpu._triton_forward, gpu._triton_backward, "CPU")


def held(case: Case, way: str | None, monkeypatch, problem=None, tf32=False) -> None:
    """Hold the Triton family to the budget; factors of its products have the tensors' dtype."""
    monkeypatch.setenv(configs.WAY_VARIABLE, way or "")
    monkeypatch.setattr(precision, "allows_tf32", lambda: tf32)
    factors = case.dtype if case.dtype.itemsize == 2 else "tf32" if tf32 else None
    check(case, "triton", problem, factors=factors)


def recurrence(dtype, **sizes) -> Case:
    return Case("recurrence", **{"T": 3, "N": 5, "H": 17, "dtype": dtype, **sizes})


SWEPT = []


def swept(dtype, **sizes) -> Case:
    """One that takes long, and has no dtype, direction, projection or mask that others lack."""
    SWEPT.append(recurrence(dtype, **sizes))
    return SWEPT[-1]


but_swept = pytest.mark.sweep(but=lambda case, **_: case not in SWEPT)
SIXTEEN = (torch.bfloat16, torch.float16)
# Every way meets every dtype, both directions, a projection, each mask, both dtypes of gates_x;
# H = 17 makes tiles with a tail, 33 three of them.
WAYS = [
    *(("resident", c) for c in (
        recurrence(torch.float32, T=4, D=2, P=5, masks="random"),
        recurrence(torch.float32, H=1, N=2, masks="lengths"),
        recurrence(torch.bfloat16, D=2, masks="random", wide=True),
        recurrence(torch.bfloat16, H=65, T=2, masks="resets"),
        recurrence(torch.float16, N=17, P=32, masks="random"),
        recurrence(torch.float16, D=2, gradients=0b0101),
    )),
    *(("sequence", c) for c in (
        recurrence(torch.float32, H=33, masks="random"),
        swept(torch.float32, D=2, P=40, masks="random"),
        recurrence(torch.bfloat16, D=2, masks="lengths", wide=True),
        recurrence(torch.bfloat16, H=34, P=3, masks="resets", gradients=0b1010),
        swept(torch.float16, D=2, H=1, N=17, masks="random"),
        recurrence(torch.float16, H=16, N=1, T=5, wide=True),
        recurrence(torch.float64, T=2, D=2, H=5, P=3, masks="random"),
    )),
    *(("step", c) for c in (
        recurrence(torch.float32, T=4, D=2, masks="random"),
        recurrence(torch.float32, H=33, P=17, masks="zero"),
        swept(torch.bfloat16, D=2, masks="resets", gradients=0b0000),
        recurrence(torch.bfloat16, H=34, P=20, masks="full", wide=True),
        swept(torch.float16, D=2, P=5, masks="random"),
        recurrence(torch.float16, H=1, N=33, masks="lengths"),
        recurrence(torch.float64, T=2, H=7, masks="random"),
    )),
]  # fmt: skip
CHOSEN = [
    swept(torch.float32, T=2, N=3, H=129, D=2),
    swept(torch.bfloat16, T=2, N=33, H=129, masks="resets", gradients=0b0001),
    recurrence(torch.float16, T=1, N=2, H=257, P=64, masks="lengths"),
    *(recurrence(dtype, T=0, D=2, P=3) for dtype in SIXTEEN),
    *(recurrence(dtype, N=0, D=2) for dtype in (torch.float32, torch.float64)),
]


@but_swept
@pytest.mark.parametrize(("way", "case"), WAYS, ids=[f"{way}-{c}".replace("recurrence-", "") for way, c in WAYS])
def test_way(way, case, monkeypatch):
    held(case, way, monkeypatch)


@pytest.mark.sweep(but=lambda way, P: P is None or way == "resident")
@pytest.mark.parametrize("way", configs.WAYS)
@pytest.mark.parametrize("P", [None, 9])
def test_tf32(way, P, monkeypatch):
    case = recurrence(torch.float32, N=9, H=30, P=P, D=2 if P else 1, masks="random")
    held(case, way, monkeypatch, tf32=True)


@but_swept
@pytest.mark.parametrize(**by_id(CHOSEN))
def test_what_the_table_chooses(case, monkeypatch):
    held(case, None, monkeypatch)


@pytest.mark.sweep(but=lambda way: way != "sequence")
@pytest.mark.parametrize("way", configs.WAYS)
def test_any_strides(way, monkeypatch):
    """No argument contiguous, an output gradient that a sum's backward has expanded."""

    def strided(x):
        if x is None:
            return None
        spread = torch.empty(*x.shape, 2, dtype=x.dtype).transpose(0, 1)
        return spread.transpose(0, 1).select(-1, 1).copy_(x)

    case = recurrence(torch.float32, D=2, P=5, masks="random")
    arguments, gradients = (list(map(strided, part)) for part in draw(case))
    gradients[0] = torch.ones(()).expand_as(gradients[0])
    assert not any(x.is_contiguous() for x in (*arguments, *gradients))
    held(case, way, monkeypatch, (arguments, gradients))


@pytest.mark.sweep(but=lambda way: way != "sequence")
@pytest.mark.parametrize("way", configs.WAYS)
def test_gradients_that_are_not_there_are_zeros(way, monkeypatch):
    monkeypatch.setenv(configs.WAY_VARIABLE, way)
    case = recurrence(torch.float32, T=2, N=3, H=5, D=2, masks="random")
    arguments, gradients = draw(case)
    tape = tape_of(forward(case, "triton", arguments))
    for k in range(4):
        absent = [g if j == k else None for j, g in enumerate(gradients)]
        zeros = [g if j == k else torch.zeros_like(g) for j, g in enumerate(gradients)]
        got, expected = (backward(case, "triton", arguments, g, tape) for g in (absent, zeros))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.sweep(but=lambda way, P: (way == "resident") == (P is not None))
@pytest.mark.parametrize("way", configs.WAYS)
@pytest.mark.parametrize("P", [None, 3])
def test_a_sequence_cut_in_chunks(way, P, monkeypatch):
    monkeypatch.setenv(configs.WAY_VARIABLE, way)
    monkeypatch.setattr(precision, "allows_tf32", lambda: False)
    dtype = torch.float32 if way == "step" and P else torch.bfloat16
    check_chunks_of_steps(recurrence(dtype, T=4, H=5, P=P, masks="random"), "triton", at=3)


@pytest.mark.parametrize("way", configs.WAYS)
@pytest.mark.parametrize(("save_tape", "save_cells"), [(False, False), (False, True)])
def test_without_a_tape(way, save_tape, save_cells, monkeypatch):
    monkeypatch.setenv(configs.WAY_VARIABLE, way)
    case = recurrence(torch.bfloat16, T=2, masks="random")
    arguments = draw(case)[0]
    full = forward(case, "triton", arguments)
    got = forward(case, "triton", arguments, save_tape=save_tape, save_cells=save_cells)
    for name, value in got.items():
        kept = name in ("output", "h_n", "c_n") or (name == "cells" and save_cells)
        torch.testing.assert_close(value, full[name] if kept else full[name].new_empty((0,)))
        assert value.dtype == full[name].dtype


@pytest.mark.sweep(but=lambda way: way != "sequence")
@pytest.mark.parametrize("way", configs.WAYS)
def test_padding_may_hold_anything(way, monkeypatch):
    """Rows beyond their length, and what a reset cuts off, reach no result."""
    monkeypatch.setenv(configs.WAY_VARIABLE, way)
    case = recurrence(torch.float32, T=4, N=3, H=5, D=2, P=3)
    (gates_x, h0, c0, *weights, _, _), gradients = draw(case)
    lengths, reset_mask = torch.tensor([2, 4, 0]), torch.zeros(4, 3, dtype=torch.bool)
    reset_mask[1] = reset_mask[0, 1] = True
    found = []
    for poison in (0.0, float("nan")):
        gates_x[2:, 0], gates_x[:, 2] = poison, poison
        for state in (h0, c0):  # a row without steps, and one that begins anew
            state[:, 2] = state[0, 1] = poison
        gradients[0][2:, 0], gradients[0][:, 2], gradients[3][2:, 0] = poison, poison, poison
        arguments = [gates_x, h0, c0, *weights, lengths, reset_mask]
        results = forward(case, "triton", arguments)
        results |= backward(case, "triton", arguments, gradients, tape_of(results))
        for name in ("h_n", "c_n"):
            results[name][:, 2] = 0  # the row's first state
        assert all(x.isfinite().all() for x in results.values())
        found.append(results)
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_lengths_are_clamped(monkeypatch):
    """Lengths below 0 and above T count as 0 and T."""
    for way in configs.WAYS:
        monkeypatch.setenv(configs.WAY_VARIABLE, way)
        case = recurrence(torch.float32, T=2, N=3, H=5, D=2)
        arguments, gradients = draw(case)
        found = []
        for lengths in ([1 - (1 << 40), 1, 1 << 40], [0, 1, 2]):
            arguments[-2] = torch.tensor(lengths)
            results = forward(case, "triton", arguments)
            found.append(results | backward(case, "triton", arguments, gradients, tape_of(results)))
        torch.testing.assert_close(*found, rtol=0, atol=0)


@triton.jit
def functions_kernel(x, s, t, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    v = tl.load(x + at)
    tl.store(s + at, cell.sigmoid(v))
    tl.store(t + at, cell.tanh(v))


@triton.jit
def rounding_kernel(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + at, rounding.rounded(tl.load(x + at), tl.bfloat16))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the branch that is not taken
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid_and_tanh(dtype):
    limits = torch.tensor([0.0, 1e-30, 0.2, 88.8, 1e30, float("inf")], dtype=dtype)
    x = torch.cat([limits, -limits, torch.linspace(-12, 12, 1012, dtype=dtype)])
    s, t = torch.empty_like(x), torch.empty_like(x)
    functions_kernel[(1,)](x, s, t, x.numel())
    eps = torch.finfo(dtype).eps
    for got, expected in ((s, x.double().sigmoid()), (t, x.double().tanh())):
        assert (got.double() - expected).abs().max() <= eps
    if dtype == torch.float32:  # near 0 as a share of the value, which float64's formula is not
        expected = x.double().tanh()
        assert ((t.double() - expected).abs() <= 5 * eps * expected.abs()).all()
    nan = torch.full_like(x, float("nan"))
    functions_kernel[(1,)](nan, s, t, x.numel())
    assert s.isnan().all() and t.isnan().all()


def test_rounding_of_the_interpreted_bfloat16():
    """What the helper that is there for the interpreter must do: round as torch does."""
    x = torch.cat([torch.randn(1022), torch.tensor([0.0, 1.00390625])])
    y = torch.empty_like(x, dtype=torch.bfloat16)
    rounding_kernel[(1,)](x, y, x.numel())
    assert torch.equal(y, x.bfloat16())
