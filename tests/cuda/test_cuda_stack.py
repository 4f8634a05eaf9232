"""A wavefront of the compiled GPU kernels, run on the CPU by tests/simt: in chunks of steps, 16-bit
layers give what they give of all steps at once, bit for bit."""

import pytest
import torch
from cuda_kinds import family

from fastlstm.stack.wavefront import backward as stack_backward
from fastlstm.stack.wavefront import forward as stack
from fastlstm.stack.wavefront.calls import StackBackward, StackForward

pytestmark = [
    pytest.mark.skipif(family.load() is not None, reason=str(family.load())),
    pytest.mark.usefixtures("poisoned_empty"),
]

T, N, I, H, L = 10, 5, 4, 9, 3


def input_weight(inputs):
    """(4H, inputs) with two numbers a column and one a row: the sums of torch's own products, which
    chunks take of fewer rows, are then the same in any order."""
    weight, rows = torch.zeros(4 * H, inputs), torch.randperm(4 * H)[: 2 * inputs]
    weight[rows, torch.arange(2 * inputs) % inputs] = torch.randn(2 * inputs)
    return weight


def draw(dtype, P):
    """A call, and gradients of output, h_n, c_n and cells."""
    outputs = P or H
    weights = [[input_weight(outputs if k else I).to(dtype) for k in range(L)]]
    weights.append([(0.4 * torch.randn(4 * H, outputs)).to(dtype) for _ in range(L)])
    weights += [[torch.randn(4 * H).to(dtype) for _ in range(L)], []]
    weights.append([torch.randn(P, H).to(dtype) for _ in range(L)] if P else [])
    states = [torch.randn(L, N, width).to(dtype) for width in (outputs, H)]
    masks = torch.tensor([T, 0, 3, 7, T]), torch.rand(T, N) < 0.2
    grads = [torch.randn(T, N, outputs).to(dtype)]
    grads += [torch.randn_like(s) for s in states] + [torch.randn(T, N, 1, H)]
    x = torch.randn(T, N, I).to(dtype)
    return StackForward("simt", x, *states, *weights, *masks, [], 0.0, True, True), grads


def through(given, chunk):
    """All results of both passes but the weights' gradients, which sum over steps."""
    call, grads = given
    ops = [getattr(torch.ops.fastlstm, f"simt_{which}").default for which in ("forward", "backward")]
    made = stack.forward(ops[0], call, chunk)
    found = {n: getattr(made, n, None) for n in StackBackward._fields}
    found |= {k: v for k, v in call._asdict().items() if k in found}
    found |= dict(zip(("doutput", "dh_n", "dc_n", "dcells"), grads, strict=True))
    found |= {"lowest": 0, "need_dx": True, "need_dweights": [False] * L}
    back = stack_backward.backward(ops[1], StackBackward(**found), chunk)
    tape = *made.hidden, *made.lower_cells, *made.gates
    return [made.output, made.h_n, made.c_n, made.cells, *tape, back.dx, back.dh0, back.dc0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kernels", "P"),
    [("cluster", None), ("cluster", 4), ("grid", None), ("step", None), ("step", 7)],
)
def test_chunks_round_no_state(kernels, P, dtype, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    given = draw(dtype, P)
    whole = through(given, T)
    with family.simulated(3):
        parts = through(given, 4)
    for k, (a, b) in enumerate(zip(parts, whole, strict=True)):
        assert torch.equal(a, b), k
