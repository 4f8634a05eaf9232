"""`fastlstm.decompositions`: exported programs in ATen's ops alone, run by an interpreter that
refuses all others."""

import copy
import operator
import os
import subprocess
import sys

import pytest
import torch
from export_cases import pytree_warns
from feature_grid import TOGETHER, Problem
from pairs import ignore_onednn, pair
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import fastlstm
from fastlstm import FastLSTM, FastLSTMCell, functional
from fastlstm.testing import compare, make_input, make_states

pytestmark = [pytree_warns, ignore_onednn, pytest.mark.usefixtures("poisoned_empty")]
loops = pytest.mark.parametrize("loop", ["unrolled", "scan"])
T, N, I, H = 5, 4, 3, 6


class AtenAlone(torch.fx.Interpreter):
    """Runs a graph whose every op is ATen's or the loop's, and arithmetic of sizes."""

    scans = 0

    def call_function(self, target, args, kwargs):
        if target is torch.ops.higher_order.scan:
            AtenAlone.scans += 1
            step, carry, sequences, constants = args
            kept = []
            for t in range(len(sequences[0])):
                found = AtenAlone(step).run(*carry, *(s[t] for s in sequences), *constants)
                carry, of_step = found[: len(carry)], found[len(carry) :]
                kept.append(of_step)
            return [*carry, *map(torch.stack, zip(*kept, strict=True))]
        if target.__module__ != operator.__name__ and target.__module__ != "_operator":
            assert target.namespace == "aten", f"{target} is no op of ATen"
        return super().call_function(target, args, kwargs)

    def call_module(self, target, args, kwargs):
        raise AssertionError(f"{target} is a module")


def run(program, *inputs):
    """The results of an exported program, flat."""
    rest, given = iter(tree_leaves(inputs)), []
    for spec in program.graph_signature.input_specs:
        if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT:
            given.append(next(rest))
        else:
            known = program.state_dict if spec.target in program.state_dict else program.constants
            given.append(known[spec.target])
    return list(AtenAlone(program.graph_module).run(*given))


class Calling(nn.Module):
    """A model that is a call of a function of `inner`."""

    def __init__(self, inner, function):
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, *args):
        return self.function(self.inner, *args)


def exported(model, *inputs, loop="auto", **options):
    program = torch.export.export(model, inputs, **options)
    return program.run_decompositions(fastlstm.decompositions(loop))


def flat(results):
    return [r for r in tree_leaves(results) if r is not None]


def same(program, model, *inputs, **tolerance):
    torch.manual_seed(7)
    got = run(program, *inputs)
    torch.manual_seed(7)
    expected = flat(model(*inputs))
    torch.testing.assert_close(got, expected, **tolerance)


# All that torch.export takes, in float64.
TAKEN = [
    ("layers", "bidirectional", "projection", "no bias", "lengths", "reset_mask", "cells", "hx"),
    ("layer_norm", "recurrent_dropout", "weight_dropout", "zoneout", "dropout", "bidirectional",
     "lengths", "reset_mask", "batch_first", "cells", "frozen"),
    ("layer_norm", "zoneout", "projection", "unbatched", "eval", "lengths", "reset_mask"),
    ("checkpoint", "bidirectional", "lengths", "reset_mask", "hx", "dropout", "layer_outputs"),
    ("checkpoint", "zoneout", "variational", "recurrent_dropout", "batch_first_states", "cells"),
]  # fmt: skip


# What a feature becomes is the same in either loop, which test_within_the_budget has both of.
@pytest.mark.sweep(but=lambda features, loop: (loop == "scan") == (TAKEN.index(features) % 2))
@loops
@pytest.mark.parametrize("features", TAKEN, ids="-".join)
def test_features_together(features, loop):
    problem = Problem(features, "auto")
    model = Calling(problem.fast, lambda lstm, x, h, c: tuple(flat(problem.call(lstm, x, (h, c)))))
    given = problem.x, *problem.states
    program = exported(model, *given, loop=loop)
    same(program, model, *given, rtol=1e-11, atol=1e-11)


def test_every_feature_is_decomposed():
    others = {"packed", "nested", "double", "autocast"}
    assert {f for c in TAKEN for f in c} == set(TOGETHER) - others


# Either loop once, and the dtypes that round; the tests of features are in float64.
BUDGETS = [{"loop": "scan", "dtype": torch.float32}, {"loop": "unrolled", "dtype": torch.bfloat16}]


@pytest.mark.sweep(but=lambda **case: case in BUDGETS)
@loops
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_within_the_budget(dtype, loop):
    lstm, fast = pair(I, H, 2, bidirectional=True, proj_size=2, dtype=dtype)
    x, hx = make_input(9, N, I, dtype), make_states(fast, N, dtype)
    with torch.no_grad():
        program = exported(fast, x, hx, loop=loop)
    compare(program.module(), lstm, x, hx, gradients=False)


@pytest.mark.sweep(but=lambda loop: loop == "scan")
@loops
def test_stored_weights_are_widened(loop):
    fast = FastLSTM(I, H, weight_dtype=torch.bfloat16)
    x = make_input(T, N, I, torch.float32)
    with torch.no_grad():
        program = exported(fast, x, None, loop=loop)
    compare(program.module(), fast.to_torch(), x, gradients=False)


def test_autocast_inside_of_the_model():
    def function(lstm, x):
        with torch.autocast("cpu", torch.bfloat16):
            return lstm(x)

    fast = FastLSTM(I, H, 2)
    x = make_input(T, N, I, torch.float32)
    with torch.no_grad():
        program = exported(Calling(fast, function), x)
        got = run(program, x)
    assert {g.dtype for g in got} == {torch.bfloat16}
    low = copy.deepcopy(fast).bfloat16()
    low_program = exported(low, x.bfloat16())
    torch.testing.assert_close(got, run(low_program, x.bfloat16()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["step", "cell", "function"])
def test_other_ways_in(kind):
    x, fast = make_input(T, N, I, torch.float64), FastLSTM(I, H, 2, dtype=torch.float64)
    if kind == "step":
        model, given = Calling(fast, lambda lstm, x, h, c: lstm.step(x, (h, c))), (x[0],)
        given += make_states(fast, N, torch.float64)
    elif kind == "cell":
        model, given = FastLSTMCell(I, H, dtype=torch.float64), (x[0],)
    else:
        weights = [tuple(w) for w in fast.all_weights]
        model = Calling(fast, lambda _, x: functional.lstm(x, weights))
        given = (x,)
    with torch.no_grad():
        same(exported(model, *given), model, *given, rtol=1e-11, atol=1e-11)


@pytest.mark.shows("aten", backend="cpu", direction="forward")
@pytest.mark.parametrize("loop", ["auto", pytest.param("scan", marks=pytest.mark.sweep)])
def test_any_T_and_N(loop):
    fast = FastLSTM(I, H, 2, bidirectional=True, batch_first=True, dtype=torch.float64)
    model = Calling(fast, lambda lstm, x, n, r: lstm(x, lengths=n, reset_mask=r))
    rows, steps = Dim("rows", min=1), Dim("steps", min=1)
    shapes = {"args": ({0: rows, 1: steps}, {0: rows}, {0: rows, 1: steps})}

    def draw(T, N):
        x = torch.randn(N, T, I, dtype=torch.float64)
        return x, torch.randint(0, T + 1, (N,)), torch.rand(N, T) < 0.4

    with torch.no_grad():
        program = exported(model, *draw(6, 3), loop=loop, dynamic_shapes=shapes)
        for size in ((6, 3), (1, 1), (17, 5)):
            AtenAlone.scans = 0
            same(program, model, *draw(*size), rtol=1e-11, atol=1e-11)
            assert AtenAlone.scans == 4  # of two layers and two directions
            given = draw(*size)
            results = flat(program.module()(*given))
            torch.testing.assert_close(results, flat(model(*given)), rtol=1e-11, atol=1e-11)


def test_auto_writes_static_steps_out():
    with torch.no_grad():
        program = exported(FastLSTM(I, H), torch.zeros(T, N, I))
    targets = [str(n.target) for n in program.graph.nodes]
    assert "scan" not in targets
    assert targets.count("aten.mm.default") + targets.count("aten.addmm.default") == T + 1


@pytest.mark.parametrize("training", [True, False])
def test_a_stack_of_one_op(training, monkeypatch):
    """As on a GPU, where the layers run as a wavefront."""
    monkeypatch.setenv("FASTLSTM_WAVEFRONT", "1")
    options = {"dropout": 0.4, "dtype": torch.float64, "backend": "reference"}
    model = FastLSTM(I, H, 3, proj_size=2, **options).train(training)
    x = make_input(T, N, I, torch.float64)
    program = torch.export.export(model, (x,))
    assert any("stack_forward" in str(n.target) for n in program.graph.nodes)
    same(program.run_decompositions(fastlstm.decompositions()), model, x, rtol=1e-11, atol=1e-11)


def test_a_decomposed_program_can_be_trained():
    fast = FastLSTM(I, H, 2, dtype=torch.float64)
    x = make_input(T, N, I, torch.float64)
    module = exported(fast, x).module()
    module(x)[0].sin().sum().backward()
    expected = torch.autograd.grad(fast(x)[0].sin().sum(), list(fast.parameters()))
    torch.testing.assert_close([p.grad for p in module.parameters()], list(expected))


def test_refusals():
    with pytest.raises(ValueError, match="loop: got 'while', expected one of 'auto'"):
        fastlstm.decompositions("while")
    x = torch.zeros(6, 3, I)
    with torch.no_grad():
        program = torch.export.export(FastLSTM(I, H), (x,), dynamic_shapes={"input": {0: Dim("steps")}})
    with pytest.raises(Exception, match="loop='unrolled' needs a static number of steps"):
        program.run_decompositions(fastlstm.decompositions("unrolled"))
    table = fastlstm.decompositions()
    with pytest.raises(ValueError, match="decompose the program before its backward is traced"):
        table[torch.ops.fastlstm.checkpointed_backward.default]()


LOAD = """
import sys
import torch
program = torch.export.load(sys.argv[1] + "/program.pt2")
given, expected = torch.load(sys.argv[1] + "/data.pt")
torch.testing.assert_close(program.module()(*given), expected)
assert "fastlstm" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.sweep(but=lambda loop: loop == "unrolled")  # torch compiles a scan before it runs it
@loops
def test_loads_where_there_is_no_fastlstm(loop, tmp_path):
    fast, x = FastLSTM(I, H, 2), make_input(T, N, I, torch.float32)
    with torch.no_grad():
        torch.export.save(exported(fast, x, loop=loop), tmp_path / "program.pt2")
        torch.save(((x,), fast(x)), tmp_path / "data.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.filterwarnings("ignore")
def test_onnx_runs_what_its_lstm_operator_cannot(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    fast = FastLSTM(I, H, 2, bidirectional=True, proj_size=2, layer_norm=True)
    model = Calling(fast, lambda lstm, x, n, r: lstm(x, lengths=n, reset_mask=r)).eval()
    rows, steps = Dim("rows", min=1), Dim("steps", min=1)
    shapes = {"args": ({0: steps, 1: rows}, {0: rows}, {0: steps, 1: rows})}

    def draw(T, N):
        return torch.randn(T, N, I), torch.randint(0, T + 1, (N,)), torch.rand(T, N) < 0.4

    with torch.no_grad():
        program = exported(model, *draw(5, 3), dynamic_shapes=shapes)
        torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, verbose=False)
        session = runtime.InferenceSession(tmp_path / "model.onnx")
        names = [i.name for i in session.get_inputs()]
        for size in ((5, 3), (9, 2)):
            given = draw(*size)
            arrays = {name: t.numpy() for name, t in zip(names, given, strict=True)}
            got = [torch.from_numpy(r) for r in session.run(None, arrays)]
            torch.testing.assert_close(got, flat(model(*given)), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@loops
def test_executorch_runs_it(loop):
    exir = pytest.importorskip("executorch.exir")
    runtime = pytest.importorskip("executorch.runtime")
    fast = FastLSTM(I, H, 2, bidirectional=True)
    model = Calling(fast, lambda lstm, x, n, r: lstm(x, lengths=n, reset_mask=r))
    given = make_input(T, N, I, torch.float32), torch.tensor([3, 5, 0, 1]), torch.rand(T, N) < 0.4
    with torch.no_grad():
        program = exported(model, *given, loop=loop)
        buffer = exir.to_edge(program).to_executorch().buffer
        method = runtime.Runtime.get().load_program(buffer).load_method("forward")
        torch.testing.assert_close(method.execute(list(given)), flat(model(*given)))


# Four directions, written out, take long to trace.
@pytest.mark.sweep(but=lambda options, weight_only, loop: loop == "scan" or "batch_first" in options)
@loops
@pytest.mark.parametrize("weight_only", [False, True], ids=["dynamic", "weight_only"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2, "bidirectional": True, "proj_size": 3},
        {"num_layers": 2, "bias": False, "batch_first": True},
    ],
    ids=["two ways", "one way"],
)
def test_int8_weights(options, weight_only, loop):
    """Against the definition, whose integers the decomposition has."""
    lstm = FastLSTM(I, H, backend="reference", weight_dtype=torch.int8, weight_only=weight_only, **options)
    x, (h, c) = torch.randn(N, T, I), make_states(lstm, N, torch.float32)
    lengths, resets = torch.tensor([5, 0, 3, 2]), torch.rand(N, T) < 0.4
    if not lstm.batch_first:
        x, resets = x.transpose(0, 1), resets.t()

    def call(lstm, x, h, c, lengths, resets):
        return lstm(x, (h, c), lengths=lengths, reset_mask=resets, return_cell_sequence=True)

    model = Calling(lstm, call)
    given = x, h, c, lengths, resets
    with torch.no_grad():
        same(exported(model, *given, loop=loop), model, *given, rtol=1e-5, atol=1e-6)
        alone = Calling(lstm, lambda lstm, x: lstm(x))
        same(exported(alone, x[0], loop=loop), alone, x[0], rtol=1e-5, atol=1e-6)
