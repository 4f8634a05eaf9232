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


def run(dtype, P, everything: bool, T=1):
    """A forward and a backward on tensors without memory: T steps of 40 rows and 200 units."""
    N, D, H, outputs = 40, 2, 200, P or 200

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
    variant_launch.loop(*gradients, *given, cells, gates, cells, *hats, *masks, seed, *options, True, False)


@pytest.mark.parametrize(
    ("dtype", "P", "everything", "capability"),
    [
        (torch.bfloat16, 100, True, 90),
        pytest.param(torch.float32, None, False, 80, marks=pytest.mark.sweep),
    ],
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


@pytest.mark.parametrize("P", [None, 100])
def test_later_steps_go_to_the_compiled_kernels(P, monkeypatch):
    T, D = 3, 2
    launches = record(monkeypatch, lambda: run(torch.float32, P, True, T))
    found = {}
    for launched in launches:
        name = launched.kernel.__name__.removeprefix("lstm_variant_kernel_")
        found.setdefault(name, []).append(launched)
    for name in ("cell", "cell_backward", *(["emit", "arrive"] if P else [])):
        assert [launched.compiled for launched in found[name]] == [False] + [True] * (T - 1)
        assert {launched.grid for launched in found[name]} == {(40, D, 1)}
        parameters = [p.name for p in found[name][0].kernel.params]
        steps = [launched.arguments[parameters.index("s")] for launched in found[name]]
        assert steps == list(range(T))
    assert len(found["product"]) == (4 if P else 2) * T + 1
