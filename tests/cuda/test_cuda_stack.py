"""A wavefront of the compiled GPU kernels, run on the CPU by tests/simt: in chunks of steps, 16-bit
layers give what they give of all steps at once, bit for bit."""

import pytest
import torch
from cuda_kinds import family

from fastlstm.stack.wavefront import backward as stack_backward
from fastlstm.stack.wavefront import forward as stack

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
    """x, h0, c0, the layers' weights, the masks, and gradients of output, h_n, c_n and cells."""
    outputs = P or H
    weights = [[input_weight(outputs if k else I).to(dtype) for k in range(L)]]
    weights.append([(0.4 * torch.randn(4 * H, outputs)).to(dtype) for _ in range(L)])
    weights += [[torch.randn(4 * H).to(dtype) for _ in range(L)], []]
    weights.append([torch.randn(P, H).to(dtype) for _ in range(L)] if P else [])
    states = [torch.randn(L, N, width).to(dtype) for width in (outputs, H)]
    masks = torch.tensor([T, 0, 3, 7, T]), torch.rand(T, N) < 0.2
    grads = [torch.randn(T, N, outputs).to(dtype)]
    grads += [torch.randn_like(s) for s in states] + [torch.randn(T, N, 1, H)]
    return torch.randn(T, N, I).to(dtype), *states, stack.Weights(*weights), masks, grads


def through(given, chunk):
    """All results of both passes but the weights' gradients, which sum over steps."""
    x, h0, c0, weights, masks, grads = given
    ops = [
        getattr(torch.ops.fastlstm, f"simt_{which}").default for which in ("forward", "backward")
    ]
    dropout = stack.Dropout([], 0.0)
    output, h_n, c_n, *tape = stack.forward(
        ops[0], x, h0, c0, weights, *masks, dropout, True, True, chunk
    )
    cells, hidden, lower_cells, gates = tape
    dx, dh0, dc0, *_ = stack_backward.backward(
        ops[1], *grads, x, h0, c0, weights, stack.Tape(output, *tape), *masks, dropout,
        stack_backward.Wanted(0, True, []), chunk,
    )  # fmt: skip
    return [output, h_n, c_n, cells, *hidden, *lower_cells, *gates, dx, dh0, dc0]


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
