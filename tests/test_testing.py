"""The error budget refuses what it should."""

import pytest
import torch
from pairs import one_thread, pair  # noqa: F401  (one_thread is a fixture)

from fastlstm.testing import OverBudget, compare, judge, make_input, make_states, run

EPS = torch.finfo(torch.float32).eps


def tensors(value, dtype=torch.float32):
    return {"output": torch.full((2,), value, dtype=dtype)}


def test_budget_is_twice_the_baseline_and_one_rounding():
    oracle, errors = tensors(1.0, torch.float64), {"output": 2 * EPS}
    assert judge(tensors(1 + 4 * EPS), oracle, errors, torch.float32) == pytest.approx(4 / 4.5)
    with pytest.raises(OverBudget, match="output: relative error 5"):
        judge(tensors(1 + 5 * EPS), oracle, errors, torch.float32)


@pytest.mark.parametrize(
    "got, words",
    [
        (tensors(float("nan")), "output: relative error nan"),
        (tensors(1.0, torch.float64), "output: dtype torch.float64"),
        ({"output": torch.ones(3)}, r"output: shape \(3,\)"),
        ({}, "not given: output"),
    ],
    ids=["nan", "dtype", "shape", "missing"],
)
def test_budget_refuses(got, words):
    with pytest.raises(OverBudget, match=words):
        judge(got, tensors(1.0, torch.float64), {"output": 1.0}, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_compare_sees_one_wrong_weight(name, dtype):
    lstm, fast = pair(3, 5, backend="reference", dtype=dtype)
    x, hx = make_input(4, 2, 3, dtype), make_states(lstm, 2, dtype)
    assert compare(fast, lstm, x, hx) <= 1
    with torch.no_grad():
        getattr(fast, name).flatten()[-1] += 1
    with pytest.raises(OverBudget):
        compare(fast, lstm, x, hx)


def test_compare_sees_a_wrong_gradient():
    lstm, fast = pair(3, 5, backend="reference")
    fast.weight_hh_l0.register_hook(lambda grad: grad * (1 + 32 * EPS))
    with pytest.raises(OverBudget, match="d_weight_hh_l0"):
        compare(fast, lstm, make_input(4, 2, 3, torch.float32))


def test_run_names_all():
    lstm, _ = pair(3, 5, 2, bidirectional=True)
    found = run(lstm, make_input(4, 2, 3, torch.float32), None)
    names = {"output", "h_n", "c_n", "d_input"} | {f"d_{n}" for n, _ in lstm.named_parameters()}
    assert found.keys() == names
    assert not any(t.requires_grad for t in found.values())
