"""Counters of floating-point operations: the numbers of a loop of torch's own products."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from pairs import ignore_onednn, needs_library, one_thread  # noqa: F401  (one_thread is a fixture)
from stack_problems import Problem
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fastlstm import FastLSTM, FastLSTMCell
from fastlstm.interop import flops
from fastlstm.stack.wavefront.calls import StackBackward, StackForward

pytestmark = ignore_onednn
T, N, I, H = 4, 3, 5, 7
BACKENDS = [pytest.param("auto", marks=needs_library), "reference"]


def products(module, *, rows=T * N, need_dx=True, need_dweights=True):
    """Operations of the forward and of the backward of `module`'s weights as F.linear."""
    matrices = [(n, w) for n, w in module.named_parameters() if w.dim() == 2]
    forward = backward = 0
    for name, weight in matrices:
        x = torch.zeros(rows, weight.shape[1])
        first = name.startswith("weight_ih") and name.partition("_l")[2] in ("0", "0_reverse", "")
        x.requires_grad_(need_dx or not first)
        w = weight.detach().requires_grad_(need_dweights)
        with FlopCounterMode(display=False) as counter:
            y = F.linear(x, w)
        forward += counter.get_total_flops()
        if y.requires_grad:
            with FlopCounterMode(display=False) as counter:
                y.sum().backward()
            backward += counter.get_total_flops()
    assert forward > 0
    return forward, backward


def counted(call):
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


OPTIONS = {
    "plain": {},
    "two layers": {"num_layers": 2, "bias": False},
    "both directions": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projected": {"num_layers": 2, "proj_size": 2, "bidirectional": True},
    "normalised": {"num_layers": 2, "layer_norm": True, "proj_size": 3},
    "zoneout": {"zoneout": 0.1, "bidirectional": True},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("need_dx", [True, False])
def test_forward_and_backward(need_dx, options, backend):
    module = FastLSTM(I, H, backend=backend, **options)
    x = torch.randn(*((N, T) if module.batch_first else (T, N)), I, requires_grad=need_dx)
    states = [s.requires_grad_() for s in module(x)[1]]
    forward, backward = products(module, need_dx=need_dx)
    found, (output, _) = counted(lambda: module(x, [s.detach().requires_grad_() for s in states]))
    assert found == forward
    assert counted(lambda: output.sum().backward())[0] == backward
    with torch.no_grad():
        assert counted(lambda: module(x))[0] == forward


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_count_as_padding_does_and_the_step_and_the_cell(backend):
    module, cell = FastLSTM(I, H, 2, backend=backend), FastLSTMCell(I, H, backend=backend)
    x = torch.randn(T, N, I)
    forward, _ = products(module)
    assert counted(lambda: module(x, lengths=torch.tensor([1, 4, 0])))[0] == forward
    assert counted(lambda: module(x[:, 0]))[0] == forward // N
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert counted(lambda: module.step(x[0]))[0] == forward // T
            assert counted(lambda: cell(x[0]))[0] == products(cell, rows=N)[0]


@needs_library
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l1", "weight_hr_l0", None])
@pytest.mark.parametrize("lowest", [0, 1])
def test_the_backward_of_a_whole_stack(lowest, frozen):
    """Whose op autograd hands to a counter only where it is called by hand."""
    module = FastLSTM(I, H, 3, proj_size=2)
    weights = list(module.parameters())
    needs = [lowest == 0, False, False]
    for name, _ in module.named_parameters():
        needs.append(name != frozen and (lowest == 0 or "_l0" not in name))
    sizes = 3, False, False, False
    _, _, _, *tape, output = torch.ops.fastlstm.lstm_stack_forward(
        torch.randn(T, N, I), None, None, weights, None, None, None, *sizes, False, True, needs
    )
    first = lowest * 5
    matrices = [w for k in (0, 1, 4) for w in weights[first + k :: 5]]
    expected, lower = 0, {f"_l{k}" for k in range(lowest)}
    for (name, w), need in zip(module.named_parameters(), needs[3:], strict=True):
        if w.dim() == 2 and name[-3:] not in lower:
            below = "ih" not in name or (needs[0] if "_l0" in name else f"_l{lowest}" not in name)
            expected += 2 * T * N * w.numel() * (below + need)
    given = None if lowest else torch.randn(T, N, I)
    found, _ = counted(
        lambda: torch.ops.fastlstm.lstm_stack_backward(
            torch.ones_like(output), None, None, None, given, None, None, matrices, output, tape,
            None, None, None, *sizes, needs,
        )
    )  # fmt: skip
    assert found == expected


@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "bidirectional": True}])
def test_checkpoints_count_the_second_forward(options):
    module = FastLSTM(I, H, 2, checkpoint_every=2, **options)
    x = torch.randn(T, N, I, requires_grad=True)
    forward, backward = products(module)
    found, (output, _) = counted(lambda: module(x))
    assert found == forward
    assert counted(lambda: output.sum().backward())[0] == forward + backward


def test_every_op_with_products_is_registered():
    named = {str(op) for op in flops.formulas()}
    schemas = [s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("fastlstm::")]
    # A copy; calls that go by int8_stack where torch looks at each op; and last kernels that other
    # tests run on the CPU.
    others = ("cpu_", "cuda_", "copied", "int8_call", "simt_")
    for name in schemas:
        short = name.partition("::")[2]
        assert short.startswith(others) or f"fastlstm.{short}" in named, name
    ours = {op for op in flops.formulas() if "fastlstm.simt_" not in str(op)}
    assert ours and ours <= set(flop_registry)


def test_the_stack_of_a_gpu():
    shapes = Problem(L=2)
    x, h, c, *_ = shapes.draw(torch.device("cpu"))
    rows = x.shape[0] * x.shape[1]
    ih, hh = [(20, 3), (20, 5)], [(20, 5), (20, 5)]
    given = {"family": "cuda", "x": x.shape, "h0": h.shape, "c0": c.shape}
    given |= {"weights_ih": ih, "weights_hh": hh, "weights_hr": []}

    def call(arguments, **more):
        return arguments(**dict.fromkeys(arguments._fields) | given | more)

    forward = flops.stack_forward(call(StackForward, biases_ih=[], biases_hh=[]))
    assert forward == 2 * rows * (60 + 300)
    backward = call(StackBackward, lowest=0, need_dx=True, need_dweights=[True, True])
    assert flops.stack_backward(backward) == 2 * forward
    some = call(StackBackward, lowest=1, need_dx=False, need_dweights=[False, True])
    assert flops.stack_backward(some) == 2 * rows * (2 * 100 + 100)


def test_torch_is_told_whichever_is_imported_first():
    code = """
import os, importlib, sys, torch
for first, second in (("torch.utils.flop_counter", "fastlstm"), ("fastlstm",) * 2):
    assert {first, second}.isdisjoint(sys.modules)
    pid = os.fork()
    if pid == 0:
        importlib.import_module(first), importlib.import_module(second)
        from torch.utils.flop_counter import flop_registry
        assert torch.ops.fastlstm.lstm_layer_forward in flop_registry
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore")
def test_thop_and_ptflops():
    thop, ptflops = pytest.importorskip("thop"), pytest.importorskip("ptflops")
    found = []
    for lstm in (nn.LSTM, FastLSTM):
        model = nn.Sequential(lstm(I, H, 2, batch_first=True))
        counts = [thop.profile(model, (torch.zeros(N, T, I),), verbose=False)[0]]
        counts.append(
            ptflops.get_model_complexity_info(
                model, (T, I), backend="pytorch", as_strings=False, print_per_layer_stat=False
            )[0]
        )
        found.append(counts)
    assert found[0] == found[1] and all(found[0])
    macs, _ = ptflops.get_model_complexity_info(
        model, (T, I), backend="aten", as_strings=False, print_per_layer_stat=False
    )
    assert macs == products(model[0], rows=T)[0] // 2


def test_the_profiler_shows_names_and_shapes():
    module = FastLSTM(I, H)
    x = torch.randn(T, N, I, requires_grad=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        module(x)[0].sum().backward()
        with torch.no_grad():
            module(x)
            module(x, lengths=torch.tensor([1, 2, 3]))
    rows = {row.key: row.input_shapes for row in profile.key_averages(group_by_input_shape=True)}
    ops = {name for name in rows if name.startswith("fastlstm::")}
    assert ops, sorted(rows)
    for name in ops:
        assert [T, N, I] in rows[name] or [T, N, H] in rows[name], (name, rows[name])
