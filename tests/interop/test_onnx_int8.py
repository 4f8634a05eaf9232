"""ONNX of int8 weights: ONNX Runtime's DynamicQuantizeLSTM, or an LSTM behind DequantizeLinear."""

import pytest
import torch
from test_onnx import Everything, everything, exported  # noqa: F401  (a fixture)

from fastlstm import FastLSTM, FastLSTMCell

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
]
INT8 = torch.int8


def kinds(graph):
    return [node.op_type for node in graph if "LSTM" in node.op_type]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bidirectional": True, "num_layers": 2}])
def test_dynamic_quantize_lstm(options, exported):  # noqa: F811
    model = FastLSTM(30, 24, weight_dtype=INT8, **options).eval()
    x = torch.randn(6, 3, 30)
    graph, run = exported(model, (x,))
    assert kinds(graph) == ["DynamicQuantizeLSTM"] * model.num_layers
    widened = FastLSTM.from_torch(model, weight_dtype=None)
    (y, (h, c)), (exact, _) = model(x), widened(x)
    found = run(x)
    # Both round inputs and states to 8 bits, ours for each row, theirs for all rows at once: each
    # is as far from the widened weights' result as such rounding takes it, and so are they apart.
    # A gate or a scale in another's place would be off by a hundred times as much.
    own = float((y - exact).abs().max())
    assert 0 < float((found[0] - exact).abs().max()) < 20 * own
    for got, expected in zip(found, (y, h, c), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=20 * own)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"weight_only": True}, {"proj_size": 2}])
def test_an_lstm_of_dequantised_weights(options, exported):  # noqa: F811
    model = Everything(weight_dtype=INT8, **options).eval()
    steps, rows = torch.export.Dim("steps", min=1), torch.export.Dim("rows", min=1)
    dynamic = {"x": {0: rows, 1: steps}, "h": {1: rows}, "c": {1: rows}, "lengths": {0: rows}}
    P = options.get("proj_size", 0)
    graph, run = exported(model, everything(6, 4, P), dynamic_shapes=dynamic)
    assert kinds(graph) == ["LSTM"] * 2
    model.lstm.weight_only = True  # what these nodes compute
    for size in ((6, 4), (1, 1), (13, 7)):
        args = everything(*size, P)
        torch.testing.assert_close(run(*args), list(model(*args)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_lengths_states_and_cells(exported):  # noqa: F811
    model = Everything(weight_dtype=INT8).eval()
    args = everything(6, 4)
    graph, run = exported(model, args)
    assert kinds(graph) == ["DynamicQuantizeLSTM"] * 2
    for got, expected in zip(run(*args), model(*args), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0.05)
        assert ((got == 0) == (expected == 0)).float().mean() > 0.99  # what does not exist
    cell = FastLSTMCell(6, 8, weight_dtype=INT8).eval()
    x = torch.randn(3, 6)
    graph, run = exported(cell, (x,))
    assert kinds(graph) == ["DynamicQuantizeLSTM"]
    torch.testing.assert_close(run(x), list(cell(x)), rtol=0, atol=0.02)


def test_without_the_table_it_says_what_to_give(tmp_path):
    pytest.importorskip("onnxscript")
    model = FastLSTM(3, 4, weight_dtype=INT8).eval()
    with pytest.raises(Exception, match="Failed") as caught:
        torch.onnx.export(model, (torch.randn(2, 1, 3),), dynamo=True, verbose=False)
    causes, error = [], caught.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    assert any("weight_dtype=torch.int8: torch.onnx.export needs" in text for text in causes)
