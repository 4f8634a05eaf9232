"""gradcheck in float64: the gradients of FastLSTM against differences of its own results."""

import pytest
import torch
from pairs import needs_library, on_cpu, one_thread, pair  # noqa: F401  (one_thread is a fixture)
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from fastlstm.testing import make_input, make_states

T, N, I, H = 3, 2, 2, 3


def check(backend, *, num_layers, bidirectional, proj_size, kind, batch_first=False, options=()):
    _, fast = pair(
        I,
        H,
        num_layers,
        backend=backend,
        bidirectional=bidirectional,
        proj_size=proj_size,
        batch_first=batch_first,
        dtype=torch.float64,
    )
    x = make_input(T, N, I, torch.float64, kind=kind, batch_first=batch_first)
    options = dict(options)
    if "reset_mask" in options:
        options["reset_mask"] = torch.rand((N, T) if batch_first else (T, N)) < 0.4
    names = [name for name, _ in fast.named_parameters()]

    def results(data, h0, c0, *weights):
        input = PackedSequence(data, *x[1:]) if kind == "packed" else data
        y, state, *cells = functional_call(fast, dict(zip(names, weights, strict=True)), (input, (h0, c0)), options)
        rest = [c.data if kind == "packed" else c for c in cells]
        return (y.data if kind == "packed" else y, *state, *rest)

    leaves = [x.data, *make_states(fast, N, torch.float64), *fast.parameters()]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(results, leaves, fast_mode=True)


STACKS = [
    *(pytest.param("cpu", layers, marks=needs_library) for layers in (1, 2, 3)),
    *(("reference", layers) for layers in (1, 2)),
]


@pytest.mark.parametrize("backend, num_layers", STACKS)
@pytest.mark.parametrize("kind", ["batched", "packed", "lengths", "resets"])
@pytest.mark.parametrize("proj_size", [0, 2], ids=["P0", "P2"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["D1", "D2"])
def test_gradcheck(num_layers, bidirectional, proj_size, kind, backend):
    options = {
        "batched": {},
        "packed": {},
        "lengths": {"lengths": torch.tensor([2, 3])},
        "resets": {
            "lengths": torch.tensor([3, 0]),
            "reset_mask": None,
            "return_cell_sequence": True,
        },
    }[kind]
    for batch_first in (False, True):
        check(
            backend,
            num_layers=num_layers,
            bidirectional=bidirectional,
            proj_size=proj_size,
            kind="packed" if kind == "packed" else "batched",
            batch_first=batch_first,
            options=options,
        )


@pytest.mark.parametrize("backend", [on_cpu, "reference"])
def test_gradgradcheck(backend):
    _, fast = pair(I, H, 2, backend=backend, bidirectional=True, dtype=torch.float64)
    x = make_input(T, N, I, torch.float64).requires_grad_()
    lengths, mask = torch.tensor([2, 3]), torch.rand(T, N) < 0.4
    assert torch.autograd.gradgradcheck(
        lambda x, w: functional_call(fast, {"weight_hh_l0": w}, (x,), {"lengths": lengths, "reset_mask": mask})[0],
        (x, fast.weight_hh_l0.detach().clone().requires_grad_()),
        fast_mode=True,
    )
