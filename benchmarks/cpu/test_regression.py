"""Regression timings: ``pytest benchmarks/ --benchmark-only``.

``--benchmark-autosave`` and ``--benchmark-compare`` hold two commits against each other. Few
shapes, both implementations, one group per cell, one thread. The tables of a release come from
``python -m benchmarks``, which takes turns and checks every result; nothing here asserts a time.
"""

import pytest
import torch

from benchmarks.common import check
from benchmarks.common.peers import PEERS, Problem
from benchmarks.common.shapes import MODES, Case
from benchmarks.common.timing import torch_threads

CASES = [Case(64, 1, 256, 256), Case(64, 16, 128, 128), Case(32, 64, 256, 256)]
RESETS = Case(64, 16, 128, 128, variant="resets")


def build(name: str, case: Case, dtype: str, mode: str):
    """The task of peer ``name``, or a skip with its reason."""
    torch_dtype = getattr(torch, dtype)
    reason = PEERS[name].reject(case, torch_dtype, "cpu")
    if reason:
        pytest.skip(reason)
    problem = Problem.make(case, torch_dtype)
    return check.make_task(PEERS[name].build(problem), problem, mode)


def measure(benchmark, name: str, case: Case, dtype: str, mode: str) -> None:
    task = build(name, case, dtype, mode)
    benchmark.group = f"{case.label} {dtype} {mode}"
    # The reset is timed too: pytest-benchmark has no untimed part between calibrated rounds, and
    # setting a few gradients to None takes about a microsecond for either implementation.
    with torch_threads(1):
        benchmark(lambda: (task.prepare(), task.call())[0])


@pytest.mark.parametrize("name", ["nn.LSTM", "FastLSTM"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_core(benchmark, case, dtype, mode, name):
    measure(benchmark, name, case, dtype, mode)


@pytest.mark.parametrize("name", ["nn.LSTMCell loop", "FastLSTM"])
@pytest.mark.parametrize("mode", MODES)
def test_resets(benchmark, mode, name):
    measure(benchmark, name, RESETS, "float32", mode)
