"""Engines for an LSTM with int8 weights, for engines.py: FastLSTM with and without weight_only,
torch's quantize_dynamic of nn.LSTM, and ONNX Runtime's DynamicQuantizeLSTM from its own quantiser.

FastLSTM's results are checked against the definition of its arithmetic: twice that one's error and
one rounding of float32. Others quantise differently: their error may be an eighth of the largest
number, which shows that it is the same LSTM. The answer's "error" is max |y - exact| / max |exact|.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import check
from benchmarks.common.peers import Problem, flat
from benchmarks.cpu import engines

TORCH, ONNX_RUNTIME = "torch, int8", "ONNX Runtime, int8"
FAST, FAST_WEIGHTS = "FastLSTM, int8", "FastLSTM, int8 weights only"
OURS = (FAST, FAST_WEIGHTS)
_SAME_LSTM = 1 / 8


def fast_lstm(problem: Problem, threads: int) -> engines.Call:
    from fastlstm import FastLSTM

    return engines.module_call(FastLSTM, problem, weight_dtype=torch.int8)


def fast_lstm_weights(problem: Problem, threads: int) -> engines.Call:
    from fastlstm import FastLSTM

    return engines.module_call(FastLSTM, problem, weight_dtype=torch.int8, weight_only=True)


def definition(problem: Problem, weight_only: bool) -> engines.Call:
    from fastlstm import FastLSTM

    options = {"weight_only": weight_only, "backend": "reference"}
    return engines.module_call(FastLSTM, problem, weight_dtype=torch.int8, **options)


def quantised_by_torch(lstm: nn.LSTM) -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        return quantize_dynamic(nn.Sequential(lstm), {nn.LSTM}, dtype=torch.qint8)[0]


def torch_lstm(problem: Problem, threads: int) -> engines.Call:
    module = nn.LSTM(problem.case.I, problem.case.H)
    module.load_state_dict(problem.state_dict)
    module = quantised_by_torch(module.eval())
    return lambda: flat(module(problem.x))


def onnx_runtime(problem: Problem, threads: int) -> engines.Call:
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        given.write_bytes(engines.onnx_model(problem))
        logging.getLogger().setLevel(logging.ERROR)  # it warns that the graph was not pre-processed
        quantize_dynamic(given, made, reduce_range=not has_vnni())
        return engines.onnx_runtime(problem, threads, made.read_bytes())


def has_vnni() -> bool:
    """Whether the CPU has dot products of bytes. Without them ONNX Runtime's kernels for 8-bit
    weights saturate, and it recommends 7 bits."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "vnni" in cpuinfo.read_text()


ENGINES = {
    TORCH: torch_lstm,
    FAST: fast_lstm,
    FAST_WEIGHTS: fast_lstm_weights,
    ONNX_RUNTIME: onnx_runtime,
}
PACKAGES = {ONNX_RUNTIME: engines.PACKAGES[engines.ONNX_RUNTIME]}


def checked(name: str, problem: Problem, call: engines.Call) -> tuple[float, float]:
    """The largest share of its budget that the engine uses, and its error; `check.WrongResult`
    above 1."""
    exact = exact_results(problem)
    got = engines.results(call)
    if name in OURS:
        base = engines.results(definition(problem, name == FAST_WEIGHTS))
        used = check.judge(name, got, check.errors(base, exact), exact, torch.float32)
    else:
        zero = dict.fromkeys(exact, 0.0)
        used = check.judge(name, got, zero, exact, torch.float32, _SAME_LSTM)
    return used, relative(got["output"], exact["output"])


def exact_results(problem: Problem) -> dict[str, Tensor]:
    return engines.results(engines.module_call(nn.LSTM, problem.as_float64(), dtype=torch.float64))


def relative(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).detach().abs().max() / exact.detach().abs().max())
