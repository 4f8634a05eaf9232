"""A grid of sizes around what the kernels are cut into, for test_kernels_isa.py to run on each.

Lanes: 2 to 16 numbers a vector, so units and outputs with and without lanes left over. Rows: blocks
of 3 or 6, and chunks of 96. Sums: an even and an uneven number of terms, with one or two rows,
where two sums go side by side.
"""

import itertools

import pytest
import torch
from op_cases import DTYPES, Case, by_id, check
from pairs import needs_library

pytestmark = needs_library

NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}


@pytest.mark.sweep(but=lambda H, **_: H in (1, 3, 8, 9, 17, 33, 64, 65))
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("H", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65])
def test_units(H, dtype):
    check(Case("recurrence", T=3, N=3, H=H, dtype=dtype, D=2, masks="random"))


@pytest.mark.sweep(but=lambda P, **_: P in (1, 3, 8, 17, 33, 64, 70))
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("P", [1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 63, 64, 65, 70])
def test_outputs(P, dtype):
    check(Case("recurrence", T=3, N=2, H=19, P=P, dtype=dtype, wide=True, masks="resets"))


@pytest.mark.sweep(but=lambda N, **_: N in (1, 2, 3, 4, 5, 7, 13, 96, 97, 193))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=NAMES.get)
@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 19, 95, 96, 97, 193])
def test_rows(N, dtype):
    check(Case("recurrence", T=3, N=N, H=17, dtype=dtype, masks="random"))
    check(Case("recurrence", T=2, N=N, H=9, P=5, dtype=dtype, masks="lengths"))


@pytest.mark.parametrize(
    **by_id(
        [
            Case("layer", T=T, N=N, I=I, H=H, P=P, D=2, dtype=dtype, wide=True, masks="random")
            for (T, N, I, H, P), dtype in itertools.product(
                [(5, 3, 4, 17, None), (4, 7, 1, 16, 5), (2, 100, 3, 8, 8)], DTYPES
            )
        ]
    )
)
def test_layers(case):
    check(case)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("masks", ["none", "random", "zero", "full"])
@pytest.mark.parametrize("D", [1, 2])
def test_steps(steps, masks, D):
    """An even and an uneven number of steps: the two buffers of the states end either way."""
    check(Case("recurrence", T=steps, N=5, H=10, dtype=torch.float64, D=D, masks=masks))
    check(Case("recurrence", T=steps, N=5, H=10, P=3, dtype=torch.float64, D=D, masks=masks))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=NAMES.get)
@pytest.mark.parametrize("N, H, P", [(1, 633, None), (2, 633, None), (3, 190, 183), (16, 331, None)], ids=str)
def test_weights_streamed_in_16_bits(N, H, P, dtype):
    """Which bfloat16 weights are in pairs of two terms, the last alone where their number is
    uneven."""
    check(Case("recurrence", T=2, N=N, H=H, P=P, dtype=dtype, D=2 if N == 3 else 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=NAMES.get)
def test_cells_are_float32_between_steps(dtype):
    """A cell that gains 2^-12 a step: 16 bits of it would stand still from 1 on."""
    steps, gain = 256, 2.0**-12
    gates_x = torch.tensor([60.0, 60.0, gain, 0.0]).expand(steps, 1, 1, 4)
    states = torch.zeros(1, 1, 1, dtype=dtype), torch.ones(1, 1, 1, dtype=dtype)
    weight_hh = torch.zeros(1, 4, 1, dtype=dtype)
    arguments = gates_x, *states, weight_hh, None, None, None, True, True
    cells = torch.ops.fastlstm.lstm_forward(*arguments)[3]
    assert cells.dtype == torch.float32
    assert abs(cells[-1].item() - (1 + steps * gain)) < 1e-5


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=NAMES.get)
def test_a_step_multiplies_the_output_of_the_last(dtype, wide, projected):
    """h is rounded to the output's type before it is used: seen as tanh(h) in a float32 cell."""
    N = 64
    gates_x = torch.zeros(2, N, 1, 4)
    gates_x[0] = torch.randn(N, 1, 4)
    gates_x[1] = torch.tensor([80.0, -80.0, 0.0, 0.0])
    states = torch.zeros(1, N, 1, dtype=dtype), torch.randn(1, N, 1).to(dtype)
    weight_hh = torch.tensor([[[0.0], [0.0], [1.0], [0.0]]], dtype=dtype)
    weight_hr = torch.full((1, 1, 1), 0.9, dtype=dtype) if projected else None
    arguments = gates_x if wide else gates_x.to(dtype), *states, weight_hh, weight_hr
    output, _, _, cells, _ = torch.ops.fastlstm.lstm_forward(*arguments, None, None, True, True)
    expected = output[0, :, 0].float().tanh()
    torch.testing.assert_close(cells[1, :, 0, 0], expected, rtol=1e-6, atol=1e-30)
