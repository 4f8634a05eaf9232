"""The tools of torch that know nn.LSTM by its class or its name: each takes a FastLSTM as well."""

import socket
import warnings

import pytest
import torch
from pairs import ignore_onednn, one_thread, pair  # noqa: F401  (one_thread is a fixture)
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fastlstm import FastLSTM, FastLSTMCell

pytestmark = [
    ignore_onednn,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
]

X = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A model with one LSTM and one cell, of torch's classes or of fastlstm's."""

    def __init__(self, lstm=FastLSTM, cell=FastLSTMCell):
        super().__init__()
        self.lstm = lstm(3, 5, 2, batch_first=True)
        self.cell = cell(5, 5)
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        output, state = self.lstm(x)
        h, c = self.cell(output[:, -1])
        return self.head(h) + c.sum() + state[0].sum()


class WithStates(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = FastLSTM(3, 5)

    def forward(self, x, h, c, lengths):
        return self.lstm(x, (h, c), lengths=lengths)[0]


def models():
    fast, plain = Model(), Model(nn.LSTM, nn.LSTMCell)
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def test_fx_takes_it_as_a_leaf():
    fast, plain = models()
    graphs = [torch.fx.symbolic_trace(m) for m in (fast, plain)]
    assert str(graphs[0].graph) == str(graphs[1].graph)
    torch.testing.assert_close(graphs[0](X), fast(X))


def test_fx_leaf_keeps_states_and_options():
    model = WithStates()
    traced = torch.fx.symbolic_trace(model)
    (call,) = (n for n in traced.graph.nodes if n.op == "call_module")
    assert list(call.kwargs) == ["lengths"]
    args = X, torch.randn(1, 2, 5), torch.randn(1, 2, 5), torch.tensor([4, 1])
    torch.testing.assert_close(traced(*args), model(*args))


def test_fx_leaf_where_only_the_states_are_traced():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = FastLSTM(3, 5)

        def forward(self, h, c):
            return self.lstm(X, (h, c))[0]

    assert "call_module[target=lstm]" in str(torch.fx.symbolic_trace(Fixed()).graph)


def test_fx_cannot_trace_the_leaf_itself():
    with pytest.raises(torch.fx.proxy.TraceError, match="a leaf of torch"):
        torch.fx.symbolic_trace(FastLSTM(3, 5))


def test_torchscript_gets_torch_classes_and_says_so():
    fast, plain = models()
    with pytest.warns(UserWarning, match=r"torch\.jit\.script puts an nn"):
        scripted = torch.jit.script(fast)
    torch.testing.assert_close(scripted(X), plain(X))
    assert type(fast.lstm) is nn.LSTM  # torch.jit.script has put it there
    assert scripted.lstm.weight_hh_l0.data_ptr() == fast.lstm.weight_hh_l0.data_ptr()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch")  # as torch does for its own
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_tracing_records_torch_own_ops(dropout):
    fast, plain = models()
    fast.lstm.dropout = dropout
    fast.eval()
    traced = torch.jit.trace(fast, X)
    assert "aten::lstm(" in str(traced.inlined_graph)
    assert "fastlstm::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(X), plain.eval()(X))


def test_dynamic_quantization_says_that_it_leaves_it_in_float():
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized = quantize_dynamic(Model())
    assert type(quantized.lstm) is FastLSTM
    for name in ("FastLSTM", "FastLSTMCell"):
        words = f"leaves this {name} in float. If it is to be quantized, put module.to_torch()"
        assert any(words in str(w.message) for w in caught)
    quantized(X)


def test_dynamic_quantization_takes_to_torch():
    from torch.ao.quantization import quantize_dynamic

    model = nn.Sequential(FastLSTM(3, 5).to_torch())
    quantized = quantize_dynamic(model, {nn.LSTM})
    assert type(quantized[0]) is torch.ao.nn.quantized.dynamic.LSTM


def test_data_parallel():
    fast, plain = models()
    torch.testing.assert_close(nn.DataParallel(fast)(X), plain(X))


def test_data_parallel_replicas_use_their_own_weights():
    lstm, fast = pair(3, 5)
    for module in (lstm, fast):
        module.replica = module._replicate_for_data_parallel()
        # as torch.nn.parallel.replicate does: no parameters, but tensors under their names
        module.replica._parameters = {}
        for name, p in module.named_parameters():
            setattr(module.replica, name, p * 2)
    torch.testing.assert_close(fast.replica(X), lstm.replica(X))
    torch.testing.assert_close(fast(X), lstm(X))


@pytest.fixture
def process_group():
    if not torch.distributed.is_available():
        pytest.skip("torch is built without torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = torch.distributed.TCPStore("127.0.0.1", port, 1, True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def gradients(model):
    model(X).sum().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel(process_group):
    fast, plain = models()
    torch.testing.assert_close(
        gradients(nn.parallel.DistributedDataParallel(fast)), gradients(plain)
    )


@pytest.mark.filterwarnings("ignore")
def test_fully_sharded_data_parallel(process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fast, plain = models()
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(fast.lstm, mesh=mesh)
    fully_shard(fast, mesh=mesh)
    sharded = [g.full_tensor() for g in gradients(fast)]
    torch.testing.assert_close(sharded, gradients(plain))


@pytest.fixture
def allow_rnn():
    config = torch._dynamo.config
    before, config.allow_rnn = config.allow_rnn, True
    yield
    config.allow_rnn = before
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_layers, bidirectional", [(1, False), (2, True)])
def test_compile_whole_with_allow_rnn(allow_rnn, num_layers, bidirectional):
    fast = FastLSTM(3, 5, num_layers, bidirectional=bidirectional)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True)
    for T in (4, 7):
        x = torch.randn(T, 2, 3)
        torch.testing.assert_close(compiled(x), fast(x))
        lengths, mask = torch.tensor([1, T]), torch.rand(T, 2) < 0.3
        torch.testing.assert_close(
            compiled(x, lengths=lengths, reset_mask=mask), fast(x, lengths=lengths, reset_mask=mask)
        )


@pytest.mark.filterwarnings("ignore")
def test_compile_without_the_flag_is_right():
    fast, plain = models()
    torch.testing.assert_close(torch.compile(fast, backend="aot_eager")(X), plain(X))
    packed = pack_sequence([X[:, 0], X[:2, 1]])
    compiled = torch.compile(fast.lstm, backend="eager")
    torch.testing.assert_close(compiled(packed)[0].data, fast.lstm(packed)[0].data)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
def test_export():
    fast, plain = models()
    exported = torch.export.export(fast, (X,), strict=False)
    torch.testing.assert_close(exported.module()(X), plain(X))


def test_no_warning_on_import_or_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Model()(X)
