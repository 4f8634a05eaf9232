"""Engines for an LSTM in float32 inference: PyTorch, FastLSTM, ONNX Runtime, OpenVINO.

``python -m benchmarks.cpu.engines`` serves one of them from this process, for engine_rounds.py: it
reads requests, a line of JSON each, and answers each with a line.

    {"case": {...}}      build it with the weights and input of that case's `peers.Problem` and hold
                         its result to float64 (check.py) -> {"budget_used": ...}, of those with
                         int8 weights (int8_engines.py) also {"relative_error": ...}
    {"seconds": ...}     call it for so long             -> {"times": [...]} in seconds

An answer {"error": ...} has the reason. For weights stored in bfloat16 the oracle has the rounded
weights, so that only the arithmetic is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.common import check
from benchmarks.common.peers import Problem, flat, lstm_like
from benchmarks.common.shapes import Case

NN_LSTM, FAST, FAST_STORED = "nn.LSTM", "FastLSTM", "FastLSTM, bfloat16 weights"
ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
# The most calls of a burst, whatever time is left.
MOST_CALLS = 400

Call = Callable[[], tuple[Tensor, ...]]  # returns y, h_n, c_n as tensors or numpy arrays


def torch_lstm(problem: Problem, threads: int) -> Call:
    return module_call(nn.LSTM, problem)


def fast_lstm(problem: Problem, threads: int) -> Call:
    from fastlstm import FastLSTM

    return module_call(FastLSTM, problem)


def fast_lstm_stored(problem: Problem, threads: int) -> Call:
    from fastlstm import FastLSTM

    return module_call(FastLSTM, problem, weight_dtype=torch.bfloat16)


def module_call(cls: type[nn.LSTM], problem: Problem, **options) -> Call:
    module = lstm_like(cls, problem.case, **options).eval()
    module.load_state_dict(problem.state_dict)
    return lambda: flat(module(problem.x))


def onnx_model(problem: Problem) -> bytes:
    """One LSTM node with the problem's weights; x (T, N, I) in, Y (T, 1, N, H), Y_h, Y_c out."""
    from onnx import TensorProto, helper, numpy_helper

    case = problem.case

    def gates(name: str):  # from torch's order i, f, g, o to ONNX's i, o, f, c
        i, f, g, o = problem.state_dict[name].chunk(4)
        return torch.cat([i, o, f, g])

    weights = {
        "W": gates("weight_ih_l0")[None],
        "R": gates("weight_hh_l0")[None],
        "B": torch.cat([gates("bias_ih_l0"), gates("bias_hh_l0")])[None],
    }
    outputs = {"Y": [case.T, 1, case.N, case.H], "Y_h": [1, case.N, case.H]}
    outputs["Y_c"] = outputs["Y_h"]
    node = helper.make_node("LSTM", ["x", *weights], list(outputs), hidden_size=case.H)

    def described(name: str, shape: list[int]):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node],
        "lstm",
        [described("x", [case.T, case.N, case.I])],
        [described(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()],
    )
    # Old versions, which all recent runtimes support.
    opset = helper.make_opsetid("", 14)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def onnx_runtime(problem: Problem, threads: int, model: bytes | None = None) -> Call:
    """model: in place of onnx_model's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    model = model or onnx_model(problem)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": problem.x.numpy()}
    return lambda: without_directions(*session.run(None, feed))


def openvino(problem: Problem, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # Its default is bfloat16 products where the CPU has them.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(onnx_model(problem)), "CPU", settings)
    request, x = compiled.create_infer_request(), problem.x.numpy()

    def call():
        found = request.infer([x], share_inputs=True, share_outputs=True)
        return without_directions(*(found[k] for k in range(3)))

    return call


def without_directions(y, h_n, c_n):
    """Removes the dimension of directions that ONNX's Y has."""
    return y[:, 0], h_n, c_n


ENGINES: dict[str, Callable[[Problem, int], Call]] = {
    NN_LSTM: torch_lstm,
    FAST: fast_lstm,
    FAST_STORED: fast_lstm_stored,
    ONNX_RUNTIME: onnx_runtime,
    OPENVINO: openvino,
}
PACKAGES = {ONNX_RUNTIME: ("onnxruntime", "onnx"), OPENVINO: ("openvino", "onnx")}


def every_engine() -> dict[str, Callable[[Problem, int], Call]]:
    """Including those with int8 weights."""
    from benchmarks.cpu import int8_engines  # late, since it imports this file

    return ENGINES | int8_engines.ENGINES


def rounded(problem: Problem) -> Problem:
    """The problem with weight matrices rounded to bfloat16."""
    state = {
        name: value.bfloat16().to(value.dtype) if value.dim() == 2 else value
        for name, value in problem.state_dict.items()
    }
    return replace(problem, state_dict=state)


def results(call: Call) -> dict[str, Tensor]:
    """Copies, since an engine may return its own buffers."""
    return {key: torch.as_tensor(value).clone() for key, value in zip(check.STATE_NAMES, call(), strict=True)}


@torch.no_grad()
def checked(name: str, problem: Problem, call: Call) -> float:
    """The largest share of its error budget that the engine uses; `check.WrongResult` above 1."""
    if name == FAST_STORED:
        problem = rounded(problem)
    exact = results(module_call(nn.LSTM, problem.as_float64(), dtype=torch.float64))
    base = check.errors(results(module_call(nn.LSTM, problem)), exact)
    return check.judge(name, results(call), base, exact, problem.dtype)


def burst(call: Call, seconds: float, clock: Callable[[], float] = time.perf_counter):
    """Times of the calls within ``seconds``, after one that wakes threads and fills caches."""
    call()
    times, stop = [], clock() + seconds
    while not times or (clock() < stop and len(times) < MOST_CALLS):
        start = clock()
        call()
        times.append(clock() - start)
    return times


class Server:
    """Answers requests for one engine."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        self.call: Call | None = None

    def answer(self, request: dict) -> dict[str, object]:
        from benchmarks.cpu import int8_engines

        try:
            with torch.no_grad():
                if "seconds" in request:
                    return {"times": burst(self.call, request["seconds"])}
                problem = Problem.make(Case(**request["case"]), torch.float32)
                self.call = every_engine()[self.name](problem, self.threads)
                if self.name in ENGINES:
                    return {"budget_used": checked(self.name, problem, self.call)}
                used, error = int8_engines.checked(self.name, problem, self.call)
                return {"budget_used": used, "relative_error": error}
        except ImportError as error:
            if error.name in (PACKAGES | int8_engines.PACKAGES).get(self.name, ()):
                return {"error": f"{error.name} is not installed: pip install fastlstm[peers]"}
            return {"error": f"ImportError: {error}"}
        except Exception as error:
            lines = str(error).splitlines() or [""]
            return {"error": f"{type(error).__name__}: {lines[0][:200]}"}


def main() -> None:
    parser = argparse.ArgumentParser(description="serve one engine from this process")
    parser.add_argument("engine", choices=every_engine())
    parser.add_argument("threads", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    server = Server(args.engine, args.threads)
    answers = sys.stdout
    # Output of libraries must not mix with the answers.
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            print(json.dumps(server.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
