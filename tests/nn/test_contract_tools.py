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


def test_fx_leaf_where_the_form_of_the_result_is_an_argument():
    class WithCells(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = FastLSTM(3, 5)

        def forward(self, x, cells):
            return self.lstm(x, return_cell_sequence=cells)

    model = WithCells()
    traced = torch.fx.symbolic_trace(model)
    for cells in (False, True):
        torch.testing.assert_close(traced(X, cells), model(X, cells))


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


class OwnForward(FastLSTM):
    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return 2 * output, state


class OwnParts(nn.Module):
    """A FastLSTM that TorchScript could have, and after it a module that it could not."""

    def __init__(self, second):
        super().__init__()
        self.first, self.second = FastLSTM(3, 5), second

    def forward(self, x):
        return self.second(self.first(x)[0])[0]


def patched():
    module = FastLSTM(5, 5)
    module.forward = lambda input, hx=None: FastLSTM.forward(module, input, hx)
    return module


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: OwnForward(5, 5), "second is a OwnForward with a forward of its own"),
        (patched, "second is a FastLSTM with a forward of its own"),
        (lambda: FastLSTM(5, 5, layer_norm=True), "cannot express layer_norm=True"),
    ],
    ids=["subclass", "patched", "variant"],
)
def test_torchscript_of_what_nn_lstm_cannot_be_is_refused_and_changes_nothing(make, words):
    model = OwnParts(make())
    parts, before = list(model.modules()), model(X)
    with pytest.raises(ValueError, match=f"torch.jit.script: .*{words}"):
        torch.jit.script(model)
    assert all(a is b for a, b in zip(model.modules(), parts, strict=True))
    torch.testing.assert_close(model(X), before)
    with pytest.raises(ValueError, match=r"torch\.jit\.script: "):
        torch.jit.script(model.second)


def test_torchscript_keeps_hooks():
    """On the module that takes the place, and so the outcome is that of an nn.LSTM with hooks."""

    class Named(FastLSTM):
        """Of another name alone."""

    outcomes, seen = [], []
    for make in (nn.LSTM, Named):
        model = OwnParts(make(5, 5))
        model.first = nn.LSTM(3, 5)
        model.second.register_forward_pre_hook(lambda module, args: seen.append(type(module)))
        expected = model(X)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcomes.append(type(torch.jit.script(model)))
            except Exception as error:
                outcomes.append(type(error))
        torch.testing.assert_close(model(X), expected)
    assert seen == [nn.LSTM, nn.LSTM, Named, nn.LSTM]
    assert outcomes[0] is outcomes[1]


@pytest.mark.parametrize("module", [FastLSTM(3, 5), FastLSTMCell(3, 5)])
def test_script_modules_that_hold_one_name_the_way_out(module):
    class Scripted(torch.jit.ScriptModule):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        @torch.jit.script_method
        def forward(self, x):
            return self.inner(x)[0]

    with pytest.raises(RuntimeError, match=r"TorchScript cannot compile a Fast.*to_torch\(\)"):
        Scripted(module)
    assert not hasattr(module, "__overloads__")
    x = X if type(module) is FastLSTM else X[0]
    torch.testing.assert_close(Scripted(module.to_torch())(x), module(x)[0])


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


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.parametrize("types", [None, {nn.LSTM, nn.LSTMCell}, {nn.LSTM}, {nn.Linear}])
def test_dynamic_quantization_gives_what_torch_classes_give(types, dtype):
    from torch.ao.quantization import quantize_dynamic

    fast, plain = models()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.quantize_per_tensor.*")
        found = [quantize_dynamic(m, types, dtype=dtype) for m in (fast, plain)]
    for name, cls in (("lstm", FastLSTM), ("cell", FastLSTMCell)):
        got, expected = (getattr(m, name) for m in found)
        if isinstance(expected, cls.__base__):  # not asked for
            assert type(got) is cls and got.weight_dtype is None
        elif dtype == torch.qint8:
            assert type(got) is cls and got.weight_dtype == torch.int8
        else:
            assert type(got) is type(expected)
    assert isinstance(found[1].lstm, nn.LSTM) == (types == {nn.Linear})
    # The rest of the model is torch's in both; of ours, tests/nn/test_int8.py has the error.
    close = {"rtol": 0, "atol": 0.02} if dtype == torch.qint8 else {}
    torch.testing.assert_close(found[0](X), found[1](X), **close)
    assert type(fast.lstm) is FastLSTM and type(fast.cell) is FastLSTMCell


def test_dynamic_quantization_says_what_it_leaves_in_float():
    from torch.ao.quantization import quantize_dynamic

    class Own(FastLSTM):
        pass

    for module, dtype in (
        (Own(3, 5), torch.qint8),
        (FastLSTM(3, 5, layer_norm=True), torch.float16),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quantized = quantize_dynamic(nn.ModuleList([module]), {nn.LSTM}, dtype=dtype)
        assert type(quantized[0]) is type(module)
        words = f"leaves this {type(module).__name__} in float. If it is to be quantized, set"
        assert any(words in str(w.message) for w in caught)
        quantized[0](X)


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
    torch.testing.assert_close(gradients(nn.parallel.DistributedDataParallel(fast)), gradients(plain))


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
