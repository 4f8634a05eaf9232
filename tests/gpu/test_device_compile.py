"""torch.compile on a GPU: the tests of compile_cases.py, and CUDA graphs by torch.compile."""

import pytest
import torch
from compile_cases import (  # noqa: F401
    allow_rnn,
    fresh_compiler,
    stacked,
    test_cell_and_step,
    test_function_in_training,
    test_function_is_one_graph_for_any_T_and_N,
    test_model_under_default_compile,
    test_module_is_one_graph_for_any_T_and_N,
    test_transforms_are_one_graph,
    trained,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("training", [False, True])
def test_reduce_overhead(training, backend, device, real_gpu):
    """The mode that captures CUDA graphs: replayed with other numbers, and with other shapes."""
    fast, function = stacked(backend, device)
    leaves = list(fast.parameters())
    compiled = torch.compile(function, mode="reduce-overhead", fullgraph=True)
    for T, N in [(6, 4)] * 5 + [(9, 7)] * 3:
        x = torch.randn(T, N, 3, device=device, requires_grad=training)
        torch.compiler.cudagraph_mark_step_begin()
        if training:
            got = [t.clone() for t in trained(compiled, leaves, x)]
            expected = trained(function, leaves, x)
        else:
            with torch.no_grad():
                got, expected = compiled(x)[0].clone(), function(x)[0]
        torch.testing.assert_close(got, list(expected) if training else expected)
