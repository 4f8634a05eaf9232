"""`./run gpu` from end to end in short, with the CPU in the GPU's place: one cell of one part. All
parts are in test_gpu_run.py, most of it a long sweep."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.common import schema
from benchmarks.common.machine import ROOT


@pytest.mark.slow
def test_a_cell_goes_through(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "bench", "bf16", "--cells", "1"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "dry-run.json").read_text())
    schema.validate(result)
    assert result["parts"]["bench bf16"]["state"] == "done"
    (row,) = result["rows"]
    assert (row["status"], row["error"]) == ("ok", None)
    lanes = "cuda", "triton", "nn.LSTM, float16"
    assert set(row["ratios"]) == {lane + end for lane in lanes for end in ("", " graph")}
    assert set(row["floor_share"]) == set(row["times"]) > set(row["ratios"])
    assert all(0 <= used <= 1 for used in row["budget_used"].values())
    assert "Nothing was measured" in (tmp_path / "dry-run.md").read_text()
    assert (tmp_path / "dry-run.png").read_bytes().startswith(b"\x89PNG")
