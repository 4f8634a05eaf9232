"""torch.export and AOTInductor on the CPU."""

import shutil

import pytest
import torch
from export_cases import (
    run_fresh,
    test_any_T_and_N,
    test_compiled_and_loaded_in_a_fresh_process,
    test_saved_and_loaded_in_a_fresh_process,
)

from fastlstm.backends import native

for feature, case in [
    ("export", test_any_T_and_N),
    ("archives", test_saved_and_loaded_in_a_fresh_process),
    ("archives", test_compiled_and_loaded_in_a_fresh_process),
]:
    pytest.mark.shows(feature, backend="cpu")(case)
# Inductor's part is torch's; that it finds schemas and fake kernels is in test_compile.py too.
pytest.mark.sweep(test_compiled_and_loaded_in_a_fresh_process)


@pytest.fixture
def backend():
    return "cpu" if native.load() is None else "reference"


@pytest.fixture
def device():
    return torch.device("cpu")


@pytest.fixture
def fresh(request):
    compiled = request.function is test_compiled_and_loaded_in_a_fresh_process
    if compiled and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler for AOTInductor")
    return run_fresh
