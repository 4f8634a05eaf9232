"""Every configuration of the table compiled for GPUs that are not here: it compiles, fits the
shared memory that the table states, keeps to its registers, and has its barriers.

By default one row of each way, arithmetic and direction; with --all most rows, each with a variant;
FASTLSTM_TEST_AOT=all compiles every row for every architecture, dtype and variant.
"""

import os
import re

import pytest
import torch

from fastlstm.backends import triton as triton_kernels
from fastlstm.backends.triton.configs import TABLE, Config

if triton_kernels.available() is not None:
    pytest.skip(str(triton_kernels.available()), allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton_compile import Layer, compile_launch, record, stack_bytes

ALL = os.environ.get("FASTLSTM_TEST_AOT") == "all"
# KiB of shared memory that a program may take, by compute capability.
LIMITS = {80: 163, 90: 227, 100: 227}
KINDS = {
    "16bit": [(torch.bfloat16, False), (torch.float16, False)],
    "tf32": [(torch.float32, True)],
    "ieee": [(torch.float32, False)],
    "float64": [(torch.float64, False)],
}
# Bytes a thread: ptxas gives up a register or two where that lets one more block run beside others.
SPILLED = 16
VARIANTS = ("plain", "masks", "projected", "odd")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def layer(row, dtype, variant) -> Layer:
    H = min(row.max_h, 512) - (variant == "odd")
    return Layer(
        N=min(row.max_n, 64),
        H=H,
        P=H // 2 if variant == "projected" else None,
        D=2,
        dtype=dtype,
        wide=variant != "plain",
        masks=variant != "plain",
    )


def selected(which, kind, k, row, dtype, variant, capability) -> bool:
    """The selection: for the capability of the measurements most rows once, with a variant each; of
    the other architectures, the first "resident" and "step" row of the 16-bit types."""
    if ALL:
        return True
    if kind == "16bit" and dtype != (torch.bfloat16, torch.float16)[k % 2]:
        return False
    if capability != 90:
        return kind == "16bit" and k in (0, 4) and variant == "plain"
    last = kind != "ieee" and k == len(TABLE[which, kind]) - 1
    variants = ("masks", "plain", "odd", "odd", "projected", "masks", "plain")
    return not last and not (kind == "tf32" and k == 0) and variant == variants[k]


CASES = {
    f"{which}-{kind}-row{k}-{str(dtype).removeprefix('torch.')}-{variant}-sm{capability}": (
        which, row, dtype, tf32, variant, capability,
    )
    for (which, kind), rows in TABLE.items()
    for k, row in enumerate(rows)
    for dtype, tf32 in KINDS[kind]
    for variant in VARIANTS
    for capability in LIMITS
    if (row.projected or variant != "projected")
    and selected(which, kind, k, row, dtype, variant, capability)
}  # fmt: skip


KEPT = re.compile(
    "16bit-row[134].*sm90|tf32-row2|backward-tf32-row4|ieee-row0|float64"
    "|backward-16bit-row0.*sm80|forward-16bit-row4.*sm100"
)
OTHERS = () if ALL else pytest.mark.sweep


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=() if KEPT.search(name) else OTHERS) for name, case in CASES.items()],
)
def test_compiles_within_bounds(case, tmp_path, monkeypatch):
    which, row, dtype, tf32, variant, capability = case
    problem = layer(row, dtype, variant)
    launches = record(monkeypatch, lambda: problem.run(which, tf32, row.config))
    assert launches
    for launched in launches:
        compiled = compile_launch(launched, GPUTarget("cuda", capability, 32))
        name = compiled.metadata.name
        assert compiled.metadata.shared <= row.shared << 10, f"{name}: {compiled.metadata.shared}"
        assert row.shared <= LIMITS[capability]
        assert compiled.metadata.num_warps == row.config.num_warps
        if capability == 90 and dtype != torch.float64:
            spilled = stack_bytes(compiled, tmp_path / "kernel")
            assert spilled <= SPILLED, f"{name} spills {spilled} bytes of registers"
        if row.config.way == "sequence":
            check_barriers(compiled, problem.P is not None)


def check_barriers(compiled, projected: bool) -> None:
    """What the interpreter cannot see: each product of a sequence is followed by a barrier, and
    nothing is loaded for the next step before it (the loop over the steps is not pipelined)."""
    text = compiled.asm["ttgir"]
    text = text[text.index("tt.func") :]
    barrier = r"gpu\.barrier|ttg\.barrier"
    assert len(re.findall(barrier, text)) == 1 + projected
    loop, _, _ = text.partition("scf.for")  # the loop over the steps is the first
    assert "async_copy" not in loop and "tt.dot" not in loop
    step_end = re.search(rf"(?s).*(?:{barrier})(.*?)\n    }}", text)[1]
    assert not re.search(r"async_copy|tt\.load|tt\.dot|tt\.store", step_end)


@pytest.mark.parametrize(
    ("which", "config"),
    [
        ("forward", Config("sequence", 16, 32, 64, 8, 2)),
        pytest.param("backward", Config("step", 32, 32, 32, 4, 2), marks=pytest.mark.sweep),
    ],
    ids=["forward-sequence", "backward-step"],
)
def test_compiles_for_amd(which, config, monkeypatch):
    problem = Layer(H=64, P=33, dtype=torch.bfloat16, wide=True, masks=True)
    for launched in record(monkeypatch, lambda: problem.run(which, False, config)):
        compiled = compile_launch(launched, GPUTarget("hip", "gfx942", 64))
        assert compiled.metadata.shared <= 64 << 10
        assert "hsaco" in compiled.asm
