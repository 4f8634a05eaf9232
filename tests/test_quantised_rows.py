"""fastlstm/int8.py: rows of int8, their packed form, and what is refused."""

import pytest
import torch
from torch import nn

from fastlstm import int8

SIZES = [(4, 1), (4, 5), (20, 3), (64, 4), (68, 7), (128, 64), (12, 0)]


@pytest.mark.parametrize(("rows", "K"), SIZES)
def test_rows_are_within_half_a_step(rows, K):
    weight = torch.randn(rows, K) * torch.logspace(-6, 6, rows)[:, None]
    q, scale = int8.quantise_rows(weight)
    assert q.dtype == torch.int8 and scale.dtype == torch.float32
    assert scale.shape == (rows,) and q.shape == weight.shape
    if K:
        assert (q.abs().amax(1) == 127).all()
        error = (weight.double() - int8.dequantise_rows(q, scale)).abs()
        assert (error <= scale[:, None].double() / 2 * (1 + 2**-20) + 2**-149).all()


def test_ties_go_to_even():
    q, scale = int8.quantise_rows(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]))
    assert scale == 1 and q.tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("size", [1e-37, 1e-38, 1e-40, 3e-44, 1.4e-45])
def test_scales_that_underflow_keep_the_row(size):
    weight = torch.tensor([[size, -size, size / 2, 0.0], [1.0, 0.5, 0.25, 0.0]])
    q, scale = int8.quantise_rows(weight)
    assert (scale > 0).all() and scale.isfinite().all()
    assert q[0, 0] == -q[0, 1] != 0
    error = (q.double() * scale[:, None].double() - weight.double()).abs()
    assert (error <= scale[:, None].double() / 2 * (1 + 2**-20)).all()


def test_rows_of_zeros():
    q, scale = int8.quantise_rows(torch.zeros(3, 4))
    assert not q.any() and not scale.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name(value):
    weight = torch.randn(8, 3)
    weight[5, 1] = value
    with pytest.raises(ValueError, match="weight_hh_l0: row 5 has NaN or infinity"):
        int8.quantise_rows(weight, "weight_hh_l0")


@pytest.mark.parametrize("gates", [1, 4])
@pytest.mark.parametrize(("H", "K"), [(1, 1), (5, 3), (16, 4), (17, 6), (40, 33), (3, 0)])
def test_packing(H, K, gates):
    q = torch.randint(-127, 128, (gates * H, K), dtype=torch.int8)
    packed = int8.pack(q, gates)
    assert packed.is_contiguous() and packed.shape == int8.packed_shape(gates * H, K, gates)
    assert packed.shape == (-(-H // 16), -(-K // 4), gates, 16, 4)
    for _ in range(20 if K else 0):
        gate, unit, k = (int(torch.randint(n, ())) for n in (gates, H, K))
        at = packed[unit // 16, k // 4, gate, unit % 16, k % 4]
        assert at == q[gate * H + unit, k]
    assert packed.abs().sum(dtype=torch.int64) == q.abs().sum(dtype=torch.int64)  # zeros around
    assert torch.equal(int8.unpack(packed, H, K), q)


def test_weights_of_a_layer_and_back():
    lstm = nn.LSTM(5, 7, proj_size=3)
    weights = int8.quantise(lstm._flat_weights)
    assert weights.hidden == 7 and weights.outputs == 3 and weights.inputs == 5
    back = int8.dequantise(weights)
    for got, given in zip(back, lstm._flat_weights, strict=True):
        if given.dim() == 2:
            step = given.abs().amax(1, keepdim=True) / 127
            assert ((got - given).abs() <= step / 2 * (1 + 2**-15)).all()
    torch.testing.assert_close(back.bias_ih, lstm.bias_ih_l0 + lstm.bias_hh_l0)
    assert not back.bias_hh.any()
    again = int8.quantise(back)
    assert torch.equal(again.packed_hh, weights.packed_hh)
    with torch.no_grad():
        lstm.weight_hr_l0[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weights\[2\]\.weight_hr: row 0"):
        int8.quantise(lstm._flat_weights, "weights[2].")
