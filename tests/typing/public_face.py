"""All of the public face as a program would use it, for `mypy --strict`; tests/test_typing.py has
mypy read it, and runs it.
"""

from typing import Any

import torch
from torch import Tensor, nn

import fastlstm
import fastlstm.testing
from fastlstm import FastLSTM, FastLSTMCell, convert, decompositions, from_keras, functional, init
from fastlstm.interop.convert import Converted
from fastlstm.weights import LayerNormWeights, LSTMWeights

T, N, I, H = 5, 3, 4, 6


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = FastLSTM(
            I,
            H,
            num_layers=2,
            bias=True,
            batch_first=False,
            dropout=0.1,
            bidirectional=False,
            proj_size=0,
            device="cpu",
            dtype=torch.float32,
            layer_norm=False,
            recurrent_dropout=0.1,
            weight_dropout=0.1,
            zoneout=(0.1, 0.05),
            checkpoint_every=None,
            weight_dtype=None,
            weight_only=False,
            variational_dropout=False,
            batch_first_states=False,
            return_layer_outputs=False,
            backend="auto",
        )
        self.cell = FastLSTMCell(H, H, bias=True, device=None, dtype=None, backend="auto")

    def forward(self, x: Tensor, lengths: Tensor, reset_mask: Tensor) -> Tensor:
        output, (h_n, c_n) = self.lstm.forward(x, None, lengths=lengths, reset_mask=reset_mask)
        output, state, cells = self.lstm(x, (h_n, c_n), return_cell_sequence=True)
        h, c = self.cell.forward(output[0], None)
        total: Tensor = h + c + cells[0] + state[0][0]
        return total


def modules() -> None:
    model = Model()
    x = torch.randn(T, N, I)
    total: Tensor = model(x, torch.tensor([5, 0, 2]), torch.zeros(T, N, dtype=torch.bool))
    assert total.shape == (N, H)
    state: tuple[Tensor, Tensor] | None = None
    with torch.no_grad():
        for x_t in x:
            y, state = model.lstm.step(x_t, state)
            assert y.shape == (N, H)
    model.lstm.reset_parameters()
    model.lstm.flatten_parameters()
    plain: nn.LSTM = FastLSTM(I, H).to_torch()
    fast: FastLSTM = FastLSTM.from_torch(plain, zoneout=0.1)
    assert isinstance(fast, nn.LSTM) and fast.backend == "auto"
    cell: nn.LSTMCell = model.cell.to_torch()
    assert FastLSTMCell.from_torch(cell).weight_dtype is None


def functions() -> None:
    lstm = FastLSTM(I, H)
    weights = LSTMWeights(*lstm.parameters())
    norms = LayerNormWeights(torch.ones(4 * H), torch.ones(4 * H), torch.ones(H), torch.zeros(H))
    x = torch.randn(T, N, I)
    output, (_, _) = functional.lstm(
        x, [weights], None, layer_norm=[norms], zoneout=0.1, training=True, backend="reference"
    )
    assert output.shape == (T, N, H)
    small = fastlstm.int8.quantise(weights)
    with torch.no_grad():
        output, _ = functional.lstm(x, [fastlstm.int8.dequantise(small)], backend="auto")
        output, _ = functional.lstm(x, [small])
    assert (small.hidden, small.outputs, output.shape) == (H, H, (T, N, H))
    assert init.orthogonal_(init.forget_bias_(lstm, 1.0), 1.0, torch.Generator()) is lstm
    x = fastlstm.testing.make_input(T, N, I, torch.float32)
    states = fastlstm.testing.make_states(lstm, N, torch.float32)
    assert fastlstm.testing.compare(lstm, lstm.to_torch(), x, states, gradients=False) <= 1


def interchange() -> None:
    report: list[Converted] = []
    model: nn.Module = convert(nn.Sequential(nn.LSTM(I, H)), backend="auto", weight_dtype=torch.bfloat16, report=report)
    assert isinstance(model, nn.Sequential) and report[0].reason is None
    kernel, recurrent, bias = torch.randn(I, 4 * H), torch.randn(H, 4 * H), torch.randn(4 * H)
    keras: FastLSTM = from_keras(kernel, recurrent, bias, batch_first=True)
    assert keras.batch_first
    with fastlstm.patch() as patched:
        replaced: tuple[str, ...] = patched.replaced
    fastlstm.unpatch()
    assert "torch.nn.LSTM" in replaced
    table: dict[Any, Any] = decompositions("scan")
    assert table and fastlstm.__version__


def tables() -> dict[Any, Any]:
    """Needs onnxscript."""
    try:
        return dict(fastlstm.onnx.translation_table())
    except fastlstm.onnx.NotInOnnx as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    modules()
    functions()
    interchange()
