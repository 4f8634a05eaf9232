"""FastLSTM beside nn.LSTM over every combination of options: results and every gradient."""

import itertools

import pytest
import torch
from pairs import ignore_onednn, needs_library, one_thread, pair  # noqa: F401  (one_thread is a fixture)

from fastlstm.testing import OverBudget, compare, make_input, make_states

pytestmark = [pytest.mark.usefixtures("poisoned_empty"), ignore_onednn]

T, N, I, H = 5, 3, 3, 6


def check_all_inputs(backend, dtype, **options):
    """Every kind of input, hx given or not, with dropout and without where there are layers."""
    dropouts = (0.0, 0.4) if options["num_layers"] > 1 else (0.0,)
    kinds = ("batched", "unbatched", "packed")
    if dtype == torch.float32:
        kinds += ("packed-sorted",)  # differs from "packed" only in the order of the rows
    for dropout, kind, given in itertools.product(dropouts, kinds, (False, True)):
        lstm, fast = pair(I, H, backend=backend, dtype=dtype, dropout=dropout, **options)
        input = make_input(T, N, I, dtype, kind=kind, batch_first=options["batch_first"])
        hx = make_states(lstm, None if kind == "unbatched" else N, dtype) if given else None
        try:
            compare(fast, lstm, input, hx)
        except OverBudget as error:
            raise AssertionError(f"{kind}, dropout={dropout}, hx given: {given}: {error}") from None


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["TNI", "NTI"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("proj_size", [0, 4], ids=["P0", "P4"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["D1", "D2"])
@pytest.mark.parametrize("num_layers", [1, 2, 3], ids=["L1", "L2", "L3"])
@needs_library
def test_results_and_gradients(num_layers, bidirectional, proj_size, bias, batch_first, dtype):
    check_all_inputs(
        "cpu",
        getattr(torch, dtype),
        num_layers=num_layers,
        bidirectional=bidirectional,
        proj_size=proj_size,
        bias=bias,
        batch_first=batch_first,
    )


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("proj_size", [0, 4], ids=["P0", "P4"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["D1", "D2"])
@pytest.mark.parametrize("num_layers", [1, 2], ids=["L1", "L2"])
def test_results_and_gradients_of_the_reference(num_layers, bidirectional, proj_size, dtype):
    check_all_inputs(
        "reference",
        getattr(torch, dtype),
        num_layers=num_layers,
        bidirectional=bidirectional,
        proj_size=proj_size,
        batch_first=True,
    )
