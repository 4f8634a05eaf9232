"""The variants' Triton kernels compiled for GPUs that are not here."""

import pytest
import torch

from fastlstm.backends import triton as triton_kernels

if triton_kernels.available() is not None:
    pytest.skip(str(triton_kernels.available()), allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton_compile import compile_launch, record, stack_bytes

from fastlstm.backends.triton import variant_launch
from fastlstm.reference.variant import Options
from fastlstm.reference.variant_backward import Prepared


def run(dtype, P, everything: bool):
    """A forward and a backward on tensors without memory: one step of 40 rows and 200 units."""
    T, N, D, H, outputs = 1, 40, 2, 200, P or 200

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def wide(*shape):
        return empty(*shape, dtype=torch.float32)

    states = empty(D, N, outputs), empty(D, N, H)
    weights = [empty(D, 4 * H, outputs), empty(D, outputs, H) if P else None]
    extras = [wide(D, N, outputs), empty(D, 4 * H), empty(D, H), empty(D, H)]
    masks = [empty(N, dtype=torch.int64), empty(T, N, dtype=torch.bool)]
    seed, options = empty(1, dtype=torch.int64), Options(0.25, 0.5, 1, 0)
    cells, gates = wide(T, N, D, H), empty(T, N, D, 4 * H)
    hats = [wide(T, N, D, 4 * H), wide(T, N, D, 1), wide(T, N, D, H), wide(T, N, D, 1)]
    if not everything:
        extras, masks, seed, hats = [None] * 4, [None] * 2, None, [None] * 4
    given = [*states, *weights, *extras]
    variant_launch.forward(gates, *given, *masks, seed, *options, True, True, False)
    gradients = [empty(T, N, D * outputs), *states, cells]
    variant_launch.loop(
        *gradients, *given, cells, gates, Prepared(cells, *hats), *masks, seed, options, True, False
    )


@pytest.mark.parametrize(
    ("dtype", "P", "everything", "capability"),
    [(torch.bfloat16, 100, True, 90), (torch.float32, None, False, 80)],
    ids=["all-sm90", "eval-sm80"],
)
def test_compiles_without_spilling(dtype, P, everything, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    seen = set()
    for launched in record(monkeypatch, lambda: run(dtype, P, everything)):
        if launched.compiled:
            continue
        compiled = compile_launch(launched, GPUTarget("cuda", capability, 32))
        seen.add(compiled.metadata.name)
        assert stack_bytes(compiled, tmp_path / "kernel") == 0, compiled.metadata.name
    kinds = {"product", "cell", "cell_backward", "initial"} | ({"emit", "arrive"} if P else set())
    assert seen == {f"lstm_variant_kernel_{kind}" for kind in kinds}
