"""What torch does to ops and modules: opcheck, fake tensors, torch.compile; test_compile_cases.py
has what is the same for any device, test_export.py torch.export."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from op_cases import Case, backward_arguments, draw, forward, op, tape_of, to
from pairs import needs_library, pair
from torch._subclasses.fake_tensor import FakeTensorMode

from fastlstm import FastLSTM, functional
from fastlstm.ops.recurrence import PREFIXES

pytestmark = needs_library

CASES = [
    Case("recurrence", T=3, N=2, H=5, dtype=torch.float64, D=2, masks="random"),
    Case("recurrence", T=4, N=3, H=8, P=3, dtype=torch.float32, gradients=0b0101),
    Case("recurrence", T=2, N=3, H=4, dtype=torch.bfloat16, wide=True, masks="lengths"),
    Case("layer", T=3, N=2, H=5, dtype=torch.float64, D=2, masks="random"),
    Case("layer", T=4, N=3, H=8, P=3, dtype=torch.float32, gradients=0b0101, biases=0),
    Case("layer", T=2, N=3, H=4, dtype=torch.bfloat16, wide=True, masks="lengths"),
]


def call_of(case, family, which, *, requires_grad=True):
    """An op and good arguments for it."""
    dtype = torch.float64 if case.dtype == torch.float64 else None
    arguments, gradients = (to(dtype, part) for part in draw(case))
    if which == "forward":
        switches = [case.wide] * (case.entry == "layer") + [True, True]
        given = [*arguments, *switches]
    else:
        tape = tape_of(forward(case, "reference", arguments))
        given = backward_arguments(case, arguments, gradients, tape)
    if requires_grad:
        given = [a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in given]
    return op(case.entry, family, which), tuple(given)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def allow_rnn():
    with torch._dynamo.config.patch(allow_rnn=True):
        yield


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case, which):
    called, given = call_of(case, "lstm", which, requires_grad=False)
    torch.library.opcheck(called, given)


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[4]], ids=str)
def test_opcheck_with_gradients(case, which):
    if which == "backward":
        # Its derivative is the reference's loop unrolled: as short as it can be.
        case = replace(case, T=1, N=1, D=1)
    called, given = call_of(case, "lstm", which)
    torch.library.opcheck(called, given)


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("entry", ["recurrence", "layer"])
def test_opcheck_of_the_reference(entry, which):
    case = Case(entry, T=1, N=1, H=2, P=1, dtype=torch.float32, masks="random")
    called, given = call_of(case, "reference", which)
    torch.library.opcheck(called, given)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("family", PREFIXES)
@pytest.mark.parametrize("which", ["forward", "backward"])
def test_fake_tensors_have_the_shapes_of_real_ones(case, family, which):
    called, given = call_of(case, family, which, requires_grad=False)
    real = called(*given)
    mode = FakeTensorMode()
    with mode:
        fake = called(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in given))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device)


def test_meta_tensors():
    for case in CASES:
        called, given = call_of(case, "lstm", "forward", requires_grad=False)
        meta = called(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in given))
        assert [m.shape for m in meta] == [r.shape for r in called(*given)]
        assert all(m.is_meta for m in meta)


def stack(T, *, N=2, I=3, H=5, layers=2, D=2):
    """Input and weights for functional.lstm."""
    lstm = torch.nn.LSTM(I, H, layers, bidirectional=D == 2)
    return torch.randn(T, N, I), [tuple(w) for w in lstm.all_weights]


def gradients_of(model, x, parameters):
    output, (h_n, c_n) = model(x)
    value = output.sin().sum() + h_n.cos().sum() + c_n.sum()
    return (output, h_n, c_n, *torch.autograd.grad(value, [x, *parameters]))


def assert_compiles(module, compiled, x):
    x = x.requires_grad_()
    got = gradients_of(compiled, x, list(module.parameters()))
    expected = gradients_of(module, x, list(module.parameters()))
    torch.testing.assert_close(got, expected)


@pytest.mark.shows("compile", "projection", backend="cpu")
@pytest.mark.parametrize("proj_size", [0, 3])
def test_module_is_one_graph_where_rnns_are_allowed(allow_rnn, proj_size):
    module = FastLSTM(3, 5, 2, bidirectional=True, proj_size=proj_size)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for T in (4, 9):
        assert_compiles(module, compiled, torch.randn(T, 2, 3))


def test_module_with_options_is_one_graph(allow_rnn):
    module = FastLSTM(3, 5, 2)

    def model(x, lengths, reset_mask):
        options = {"lengths": lengths, "reset_mask": reset_mask, "return_cell_sequence": True}
        return module(x, **options)

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    given = torch.randn(4, 2, 3), torch.tensor([4, 1]), torch.rand(4, 2) < 0.5
    torch.testing.assert_close(compiled(*given), model(*given))


def test_module_in_training_with_inductor(allow_rnn):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler for inductor")
    module = FastLSTM(3, 5)
    compiled = torch.compile(module, fullgraph=True)
    assert_compiles(module, compiled, torch.randn(4, 2, 3))


def test_functional_call_and_its_gradients():
    lstm, fast = pair(3, 5, 2, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    found = []
    for module in (lstm, fast):
        other = {k: (v * 0.5).detach() for k, v in copy.deepcopy(module).named_parameters()}

        def loss(parameters, module=module):
            return torch.func.functional_call(module, parameters, (x,))[0].sin().sum()

        leaves = {k: v.requires_grad_() for k, v in other.items()}
        found.append(torch.autograd.grad(loss(leaves), list(leaves.values())))
    torch.testing.assert_close(*found)


def test_autocast_and_compile():
    x, weights = stack(4)

    def model(x):
        with torch.autocast("cpu", torch.bfloat16):
            return functional.lstm(x, weights, bidirectional=True)[0]

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert compiled(x).dtype == torch.bfloat16
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)
