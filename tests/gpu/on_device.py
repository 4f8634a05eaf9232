"""Problems for a GPU, and their judgement: the op cases of op_cases.py run on the device, and
modules held to the reference in float64 on the CPU.
"""

import contextlib
import copy
from dataclasses import replace

import op_cases
import torch
from op_cases import Case, rounded_products

from benchmarks.common import stand_ins
from benchmarks.common.precision import fp32_precision
from fastlstm import FastLSTM
from fastlstm.backends import table
from fastlstm.testing import judge, map_tensors, relative_errors, run

DRY = stand_ins.is_dry()

# The dtype of the tensors, and to what the tensor cores round the factors of products.
KINDS = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
}


def prefix_of(backend: str) -> str:
    """The family of ops behind a backend's row."""
    return next(row.prefix for row in table.TABLE if row.name == backend)


def scaled(value: int, dry: int) -> int:
    """A size, or what a dry run takes in its place."""
    return dry if DRY else value


def check_kind(case: Case, backend: str, kind: str, device: torch.device) -> float:
    """`op_cases.check` of a case, in a kind of `KINDS`, with the backend's ops on the device."""
    dtype, factors = KINDS[kind]
    half = dtype in (torch.bfloat16, torch.float16)
    case = replace(case, dtype=dtype, wide=case.wide and half)
    with fp32_precision("ieee"):  # of a layer's other products
        torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
        return op_cases.check(case, prefix_of(backend), factors=factors, device=device)


def tensors_to(device, value):
    return map_tensors(lambda t: t.to(device), value)


def negated(value):
    return map_tensors(torch.neg, value)


def hold(module: FastLSTM, backend: str, device, input, hx=None, *, factors=None, **options) -> float:
    """Hold a backend's results and gradients to the float64 reference; the largest share of the
    budget used (fastlstm/testing.py has it, with the reference for nn.LSTM).

    Args:
        module: with backend="reference", on the CPU, in the dtype under test.
        input, hx, options: of its call, on the CPU; `options` may have tensors.
        factors: the dtype, or "tf32", to which the backend rounds the factors of products.
    """
    dtype = module.weight_ih_l0.dtype
    fast = copy.deepcopy(module).to(device)
    fast.backend = backend
    given = {k: tensors_to(device, v) for k, v in options.items()}
    got = run(fast, *tensors_to(device, (input, hx)), dtype=dtype, **given)
    got = {name: value.cpu() for name, value in got.items()}
    # float64 has no wider type: there the reference's error in float32 counts, in roundoffs.
    narrow = torch.float32 if dtype == torch.float64 else dtype
    units = torch.finfo(dtype).eps / torch.finfo(narrow).eps
    errors, oracle = {}, None
    for change in (lambda v: v, negated):
        wide, low = (
            run(
                copy.deepcopy(module).to(d),
                *map_tensors(lambda t, d=d: t.to(d), change((input, hx))),
                dtype=dtype,
                **options,
            )
            for d in (torch.float64, narrow)
        )
        if factors is not None:
            with rounded_products(factors):
                low = run(copy.deepcopy(module), *change((input, hx)), dtype=dtype, **options)
        oracle = oracle or wide
        for name, error in relative_errors(low, wide).items():
            errors[name] = max(errors.get(name, 0.0), units * error)
    return judge(got, oracle, errors, dtype)


@contextlib.contextmanager
def no_waiting(device):
    """An error if something waits for the GPU inside."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def same_bits(a: dict, b: dict) -> None:
    """AssertionError that names the first tensor of two results that differs in a bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs"
