"""Which backend serves which call, and why another does not."""

import re

import pytest
import torch
from pairs import needs_library

from fastlstm.backends import native
from fastlstm.backends import table as backends
from fastlstm.backends import triton as triton_kernels
from fastlstm.backends.table import Call

HOPPER, AMPERE, TURING = (9, 0), (8, 0), (7, 5)


def chosen(call, backend="auto"):
    return backends.select(backend, call).name


@pytest.fixture
def gpu_build(monkeypatch):
    """As on a machine where everything was built and installed."""

    def build(architectures=("80", "90a", "100a"), triton=None, library=None):
        monkeypatch.setattr(native, "load", lambda: library)
        monkeypatch.setattr(native, "cuda_architectures", lambda: tuple(architectures))
        monkeypatch.setattr(triton_kernels, "available", lambda: triton)

    build()
    return build


@pytest.mark.parametrize("dtype", backends.DTYPES, ids=str)
@pytest.mark.parametrize("capability", [AMPERE, (8, 9), HOPPER, (10, 0), (12, 0)], ids=str)
def test_cuda_comes_first_on_a_gpu(gpu_build, dtype, capability):
    call = Call("cuda", dtype, capability)
    assert chosen(call) == "cuda"
    assert chosen(call, "triton") == "triton"


def test_triton_serves_where_the_library_has_no_code_for_the_gpu(gpu_build):
    call = Call("cuda", torch.float32, (12, 0))
    gpu_build(architectures=("90a", "100a"))
    assert chosen(call) == "triton"
    with pytest.raises(RuntimeError, match=r"for compute capability 90a, 100a, the GPU has 12\.0"):
        chosen(call, "cuda")


def test_triton_serves_without_cuda_in_the_library_and_without_a_library(gpu_build):
    call = Call("cuda", torch.bfloat16, HOPPER)
    gpu_build(architectures=())
    assert chosen(call) == "triton"
    with pytest.raises(RuntimeError, match="built without CUDA"):
        chosen(call, "cuda")
    gpu_build(library="no compiled library")
    assert chosen(call) == "triton"
    with pytest.raises(RuntimeError, match="cuda: no compiled library"):
        chosen(call, "cuda")


def test_rocm_goes_to_triton(gpu_build):
    call = Call("cuda", torch.float16, (9, 4), hip=True)
    assert chosen(call) == "triton"
    with pytest.raises(RuntimeError, match="ROCm"):
        chosen(call, "cuda")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call("cuda", torch.float32, TURING), r"capability 7\.5, expected 8\.0 or later"),
        (Call("cuda", torch.float32), "torch finds no GPU"),
        (Call("mps", torch.float32), "the tensors are on 'mps', not on a GPU"),
        (Call("xpu", torch.bfloat16), "the tensors are on 'xpu'"),
    ],
    ids=["old", "none", "mps", "xpu"],
)
def test_the_rest_goes_to_the_reference_with_a_warning(gpu_build, monkeypatch, call, reason):
    monkeypatch.setattr(backends, "_warned", set())
    with pytest.warns(RuntimeWarning, match=reason):
        assert chosen(call) == "reference"
    for name in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match=reason):
            chosen(call, name)


@pytest.mark.parametrize("name", ["cuda", "triton", "cpu"])
def test_a_dtype_without_kernels_is_named(gpu_build, name):
    call = Call("cpu" if name == "cpu" else "cuda", torch.float8_e4m3fn, HOPPER)
    with pytest.raises(RuntimeError, match="float8_e4m3fn is not one of float64, float32"):
        chosen(call, name)


def test_triton_missing_is_said(gpu_build):
    gpu_build(architectures=(), triton="Triton is not installed")
    with pytest.raises(RuntimeError, match="triton: Triton is not installed"):
        chosen(Call("cuda", torch.float32, HOPPER), "triton")


@needs_library
def test_the_library_says_what_it_was_built_for():
    for architecture in native.cuda_architectures():
        assert re.fullmatch(r"\d{2,3}a?", architecture)


def test_a_call_on_this_machine():
    assert Call.of("cpu", torch.float32) == Call("cpu", torch.float32)
    call = Call.of(torch.device("cuda"), torch.float16)
    assert (call.capability is None) == (not torch.cuda.is_available())


def test_the_choice_is_a_constant_for_the_compiler():
    def f(x):
        kept = backends._capability(None), backends._no_triton()
        return x + 1 if kept[0] is None or kept[1] is None else x + 2

    x = torch.zeros(2)
    compiled = torch.compile(f, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), f(x))
