"""Every way of the Triton kernels on the device, for sizes that the table gives to another too."""

import pytest
import torch
from on_device import KINDS, check_kind, scaled
from op_cases import Case

from fastlstm.backends import table
from fastlstm.backends.triton import configs

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_empty")]
ways = pytest.mark.parametrize("way", configs.WAYS)


@pytest.fixture(autouse=True)
def triton_serves(device):
    row = next(row for row in table.TABLE if row.name == "triton")
    reason = row.reject(table.Call.of(device, torch.float32))
    if reason:
        pytest.skip(f"triton: {reason}")


@ways
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [{"H": 17, "P": 5}, {"H": 64}, {"H": 30, "N": 70}], ids=str)
def test_way(way, kind, sizes, device, monkeypatch):
    monkeypatch.setenv(configs.WAY_VARIABLE, way)
    sizes = {"T": scaled(12, 2), "N": 5, "D": 2, **sizes}
    sizes["N"] = scaled(sizes["N"], 3)
    check_kind(
        Case("recurrence", **sizes, dtype=torch.float32, wide=True, masks="random"),
        "triton",
        kind,
        device,
    )


@ways
@pytest.mark.parametrize("kind", ["tf32", "bfloat16"])
def test_long_exchange(way, kind, device, monkeypatch):
    """Many steps of several tiles: a step that read what the one before had not yet written would
    show."""
    monkeypatch.setenv(configs.WAY_VARIABLE, way)
    case = Case("recurrence", T=scaled(300, 3), N=16, H=scaled(200, 20), dtype=torch.float32, D=2)
    check_kind(case, "triton", kind, device)
