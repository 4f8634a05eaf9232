"""What the CUDA kernels compute with, and a check of them run on the CPU by tests/simt."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from op_cases import Case, check

sys.path.insert(0, str(Path(__file__).parents[1] / "simt"))
import family  # noqa: F401  (which the tests take from here)

# The dtype of the tensors, and to what the tensor cores round the factors of products. Those of
# float32 are split, and nothing is rounded.
KINDS = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
}
kinds = pytest.mark.parametrize("kind", KINDS)
# Those that cluster and grid kernels take; the rest always goes to the step kernels.
ON_CHIP = [name for name in KINDS if name != "float64"]


def check_kind(case: Case, kind: str) -> None:
    dtype, factors = KINDS[kind]
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    wide = case.wide and dtype in (torch.bfloat16, torch.float16)
    try:
        check(replace(case, dtype=dtype, wide=wide), "simt", factors=factors)
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before
