"""The variants' Triton kernels in Triton's interpreter; `test_triton_interpreter.py` runs this
file, as triton_interpreted.py, which says what it cannot show."""

import pytest
import torch
import triton
from op_cases import by_id
from variant_cases import (
    CHUNKED,
    Case,
    check,
    check_chunks,
    check_frozen,
    draw,
    forward,
    sampled_cases,
)

from fastlstm import precision
from fastlstm.backends import gpu
from fastlstm.ops import variant as variant_ops

assert triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 has to be set before this starts"
pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    pytest.mark.filterwarnings(
        "ignore:Conversion of an array with ndim > 0:DeprecationWarning"  # Triton 3.6 and before
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's: Philox is to overflow
]
variant_ops.register("triton", gpu.triton_variant_forward, gpu.triton_variant_loop, "CPU")


def held(case: Case, monkeypatch, tf32=False) -> None:
    monkeypatch.setattr(precision, "allows_tf32", lambda: tf32)
    factors = case.dtype if case.dtype.itemsize == 2 else "tf32" if tf32 else None
    check(case, "triton", factors=factors)


# A program for each row, direction and step takes milliseconds here.
SHORT = [c for c in sampled_cases(60, 21, 200) if c.T * c.N * c.D <= 15][:12]


@pytest.mark.sweep(but=lambda case: SHORT.index(case) in (2, 5, 6, 8, 9))  # with all options
@pytest.mark.parametrize(**by_id(SHORT))
def test_any_case(case, monkeypatch):
    held(case, monkeypatch)


def test_tf32(monkeypatch):
    case = Case(
        "recurrence", T=2, N=5, H=18, P=9, D=2, dtype=torch.float32, masks="random", norm="bias",
        mask=True, zoneout=(0.25, 0.5),
    )  # fmt: skip
    held(case, monkeypatch, tf32=True)


@pytest.mark.sweep(but=lambda case: case != CHUNKED[1])
@pytest.mark.parametrize("case", CHUNKED, ids=str)
def test_states_pass_from_chunk_to_chunk_unrounded(case, monkeypatch):
    monkeypatch.setattr(precision, "allows_tf32", lambda: False)
    check_chunks(case, "triton")


def test_no_gradient_of_a_frozen_weight_is_formed(monkeypatch):
    monkeypatch.setattr(precision, "allows_tf32", lambda: False)
    check_frozen("triton", monkeypatch)


def test_masks_are_the_references_bits(monkeypatch):
    monkeypatch.setattr(precision, "allows_tf32", lambda: False)
    case = Case("recurrence", T=1, N=3, H=37, dtype=torch.float32, D=2, zoneout=(0.3, 0.6))
    arguments, _ = draw(case)
    for place in (0, 3):
        arguments[place].zero_()
    for place in (1, 2):
        arguments[place].fill_(1)
    arguments[-1] = torch.tensor([2**62 + 987654321])
    found, wanted = (forward(case, family, arguments) for family in ("triton", "reference"))
    for name in ("h_n", "c_n"):
        assert torch.equal(found[name] == 1, wanted[name] == 1)
