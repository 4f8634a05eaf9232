"""torch.compile with its default settings: a FastLSTM is in the graph with what stands around it,
and an nn.LSTM goes on breaking it."""

import pytest
import torch
from pairs import ignore_onednn, one_thread  # noqa: F401  (one_thread is a fixture)
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations

import fastlstm
from fastlstm import FastLSTM

pytestmark = [
    ignore_onednn,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated"),
    pytest.mark.filterwarnings("ignore:Dynamo does not support RNN"),
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Model(nn.Module):
    def __init__(self, lstm):
        super().__init__()
        self.before, self.memory, self.after = nn.Linear(3, 4), lstm, nn.Linear(5, 2)

    def forward(self, x, **options):
        return self.after(self.memory(self.before(x), **options)[0].relu())


class Named(FastLSTM):
    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return output + 1, state


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"rnn": nn.ModuleList([FastLSTM(4, 5)])})

    def forward(self, x):
        return self.parts["rnn"][0](x)


MODULES = {
    "plain": lambda: FastLSTM(4, 5, 2, bidirectional=False),
    "reference": lambda: FastLSTM(4, 5, backend="reference"),
    "normalised": lambda: FastLSTM(4, 5, layer_norm=True),
    "subclass": lambda: Named(4, 5),
    "parametrized": lambda: parametrizations.weight_norm(FastLSTM(4, 5), "weight_hh_l0"),
    "wrapped": Wrapped,
    "in sequence": lambda: nn.Sequential(nn.Identity(), FastLSTM(4, 5)),
    "converted": lambda: fastlstm.convert(nn.LSTM(4, 5)),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_one_graph_for_all_steps(make):
    model, counter = Model(make()), CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=True)
    for T in (4, 7, 5):
        x = torch.randn(T, 2, 3)
        torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1
    assert not torch._dynamo.config.allow_rnn


def test_a_new_number_of_steps_is_one_more_graph_at_most():
    model, counter = Model(FastLSTM(4, 5)), CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for T in (4, 7, 5, 9, 3):
        compiled(torch.randn(T, 2, 3))
    assert counter.frame_count == 2


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_full_graph_and_gradients(options):
    model = nn.Sequential(nn.Linear(3, 4), FastLSTM(4, 5, **options))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 2, 3, requires_grad=True)
    found = [torch.autograd.grad(m(x)[0].sin().sum(), [x, *model.parameters()]) for m in (compiled, model)]
    torch.testing.assert_close(*found)


def test_full_graph_with_options():
    model = Model(FastLSTM(4, 5))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x, lengths = torch.randn(4, 2, 3), torch.tensor([1, 4])
    mask = torch.rand(4, 2) < 0.5
    for options in ({"lengths": lengths}, {"reset_mask": mask}):
        torch.testing.assert_close(compiled(x, **options), model(x, **options))


def test_the_module_itself_and_its_step():
    lstm = FastLSTM(4, 5)
    x = torch.randn(6, 2, 4)
    compiled = torch.compile(lstm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), lstm(x))
    step = torch.compile(lambda x: lstm.step(x)[0], backend="eager", fullgraph=True)
    torch.testing.assert_close(step(x[0]), lstm.step(x[0])[0])


def test_an_nn_lstm_still_breaks_the_graph():
    model = Model(nn.LSTM(4, 5))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model, backend="eager", fullgraph=True)(torch.randn(4, 2, 3))
    assert not torch._dynamo.config.allow_rnn
