"""ONNX: exported models hold ONNX's own LSTM operator, and onnxruntime gives the same numbers."""

import sys

import fastlstm.onnx
import pytest
import torch
from torch import nn

from fastlstm import FastLSTM, FastLSTMCell, functional
from fastlstm.testing import judge, relative_errors

# Of its own deprecated calls and of its naming of axes, torch's exporter warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
]

T, N, I, H = 6, 4, 3, 5


def test_without_onnxscript_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        fastlstm.onnx.translation_table()


@pytest.fixture
def exported(tmp_path):
    """export(model, args, **options) -> the ONNX graph, and a function that onnxruntime runs."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")

    def export(model, args, **options):
        table = fastlstm.onnx.translation_table()
        options = {"dynamo": True, "custom_translation_table": table, "verbose": False, **options}
        program = torch.onnx.export(model, args, **options)
        path = tmp_path / "model.onnx"
        program.save(path)
        session = runtime.InferenceSession(path)
        names = [i.name for i in session.get_inputs()]

        def run(*args):
            given = {name: a.numpy() for name, a in zip(names, args, strict=True)}
            return [torch.from_numpy(r) for r in session.run(None, given)]

        return program.model.graph, run

    return export


def lstm_nodes(graph):
    """Its LSTM nodes; nothing in it may be a loop."""
    kinds = [node.op_type for node in graph]
    assert not {"Loop", "Scan", "If", "SequenceAt"} & set(kinds)
    return [node for node in graph if node.op_type == "LSTM"]


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class Everything(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.lstm = FastLSTM(I, H, 2, batch_first=True, bidirectional=True, dropout=0.5, **options)

    def forward(self, x, h, c, lengths):
        output, (h_n, c_n) = self.lstm(x, (h, c), lengths=lengths)
        return output, h_n, c_n


def everything(steps, rows, proj_size=0):
    """Arguments of Everything: rows of all lengths, from 0 to all steps."""
    states = torch.randn(4, rows, proj_size or H), torch.randn(4, rows, H)
    lengths = torch.arange(rows) * steps // max(rows - 1, 1)
    return torch.randn(rows, steps, I), *states, lengths[torch.randperm(rows)]


@pytest.mark.parametrize("proj_size", [0, 2])
def test_layers_directions_states_and_lengths_of_any_size(proj_size, exported):
    model = Everything(proj_size=proj_size).eval()
    steps, rows = torch.export.Dim("steps", min=1), torch.export.Dim("rows", min=1)
    dynamic = {"x": {0: rows, 1: steps}, "h": {1: rows}, "c": {1: rows}, "lengths": {0: rows}}
    graph, run = exported(model, everything(T, N, proj_size), dynamic_shapes=dynamic)
    nodes = lstm_nodes(graph)
    assert [n.attributes["direction"].value for n in nodes] == ["bidirectional"] * 2
    assert all(n.inputs[4] is not None for n in nodes)  # sequence_lens
    for size in ((T, N), (1, 1), (13, 7)):
        args = everything(*size, proj_size)
        with torch.no_grad():
            assert_close(run(*args), list(model(*args)))


def test_a_program_of_torch_export(exported):
    model = FastLSTM(I, H, bias=False, proj_size=3).eval()
    x = torch.randn(T, N, I)
    program = torch.export.export(model, (x,), strict=False)
    graph, run = exported(program, ())
    (node,) = lstm_nodes(graph)
    assert node.inputs[3] is None  # no bias
    with torch.no_grad():
        y, states = model(x)
    assert_close(run(x), [y, *states])


def test_function_with_one_bias_and_cell(exported):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(4 * H, k) for k in (I, H))
            self.bias = nn.Parameter(torch.randn(4 * H))
            self.cell = FastLSTMCell(H, H)

        def forward(self, x):
            output, _ = functional.lstm(x, [(*self.weights, None, self.bias)])
            return self.cell(output[-1])

    model, x = Model().eval(), torch.randn(T, N, I)
    graph, run = exported(model, (x,))
    assert len(lstm_nodes(graph)) == 2
    with torch.no_grad():
        assert_close(run(x), list(model(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_computed_in_float32(dtype, exported):
    """Under autocast, so that onnxruntime is given float32. Both sides are held to float64."""
    model = Everything().eval()

    class Autocast(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *args):
            with torch.autocast("cpu", dtype):
                return tuple(r.float() for r in self.model(*args))

    args = everything(T, N)
    graph, run = exported(Autocast().eval(), args)
    assert len(lstm_nodes(graph)) == 2

    def named(results):
        names = "output", "h_n", "c_n"
        return {name: r.detach() for name, r in zip(names, results, strict=True)}

    got, low = named(run(*args)), named(Autocast()(*args))
    exact = named(model.double()(*(a.double() for a in args[:3]), args[3]))
    errors = relative_errors(low, exact)
    judge({k: v.to(dtype) for k, v in got.items()}, exact, errors, dtype)


class WithOptions(nn.Module):
    def __init__(self, options, call):
        super().__init__()
        self.lstm, self.call = FastLSTM(I, H, **options), call

    def forward(self, x, mask):
        call = {k: mask if k == "reset_mask" else v for k, v in self.call.items()}
        return self.lstm(x, **call)[0]


REFUSED = {
    "reset_mask": ({}, {"reset_mask": None}),
    "return_cell_sequence": ({}, {"return_cell_sequence": True}),
    "layer_norm": ({"layer_norm": True, "zoneout": 0.1}, {}),
    "zoneout": ({"zoneout": (0.0, 0.1)}, {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_operator_lacks_is_refused_by_name(name, exported):
    args = torch.randn(T, N, I), torch.zeros(T, N, dtype=torch.bool)
    with pytest.raises(torch.onnx.OnnxExporterError, match=rf"{name}: ONNX's LSTM") as raised:
        exported(WithOptions(*REFUSED[name]).eval(), args)
    error = raised.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, fastlstm.onnx.NotInOnnx)


PLAIN = {
    "plain": {},
    "layers": {"num_layers": 2, "bidirectional": True, "bias": False},
    "batch_first": {"batch_first": True},
}


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_without_the_table_it_is_torchs_lstm(exported, backend, options):
    fast = FastLSTM(I, H, backend=backend, **options).eval()
    x = torch.randn(T, N, I)
    graph, run = exported(fast, (x,), custom_translation_table=None)
    output, (h_n, c_n) = fast(x)
    assert_close(run(x), [output, h_n, c_n])
    assert "fastlstm" not in {node.domain for node in graph}


def test_without_the_table_cells_are_torchs_too(exported):
    cell = FastLSTMCell(I, H).eval()
    x = torch.randn(N, I)
    _, run = exported(cell, (x,), custom_translation_table=None)
    assert_close(run(x), list(cell(x)))


def test_without_the_table_what_needs_it_names_it(exported):
    class Lengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = FastLSTM(I, H)

        def forward(self, x, lengths):
            return self.lstm(x, lengths=lengths)[0]

    given = torch.randn(T, N, I), torch.tensor([1, 2, 3, 4])
    projected = FastLSTM(I, H, proj_size=2)
    for name, model, args in (("lengths", Lengths(), given), ("proj_size", projected, given[:1])):
        with pytest.raises(torch.onnx.OnnxExporterError) as error:
            exported(model.eval(), args, custom_translation_table=None)
        causes, cause = [], error.value
        while cause is not None:
            causes.append(str(cause))
            cause = cause.__cause__ or cause.__context__
        words = f"{name}: torch.onnx.export needs custom_translation_table"
        assert words in "".join(causes)
