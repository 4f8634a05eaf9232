"""python -m fastlstm: the report for reading and as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_kinds import family

import fastlstm
from fastlstm import __main__
from fastlstm.backends import native, report, table

ROOT = Path(fastlstm.__file__).parents[1]


def test_json_names_every_device_and_dtype(capsys):
    __main__.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["fastlstm"], found["torch"]) == (fastlstm.__version__, torch.__version__)
    assert found["threads"] == torch.get_num_threads()
    assert found["library"]["loaded"] == (native.load() is None)
    served = {(e["device"], e["dtype"]): e for e in found["backends"]}
    for device in ("cpu", "cuda"):
        for dtype in ("float64", "float32", "bfloat16", "float16"):
            entry = served[device, dtype]
            call = table.Call(device, getattr(torch, dtype))
            for row in table.TABLE:
                assert entry["refused"].get(row.name) == row.reject(call)
            assert entry["backend"] not in entry["refused"]
    assert str(ROOT) not in json.dumps(found)
    if found["library"]["loaded"]:
        cpu = found["library"]["cpu"]
        assert cpu["isa"] == found["library"]["cpu_isa"] and cpu["why"]
        assert set(cpu["products"]) == {"float64", "float32", "bfloat16", "float16"}
        assert cpu["l2_bytes"] in range(256 << 10, (4 << 20) + 1)


def show_with_rich(found):
    pytest.importorskip("rich")
    report.show(found)


@pytest.mark.parametrize("show", [show_with_rich, report._show_plain], ids=["rich", "plain"])
def test_text_tells_the_same(show, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    found = report.collect()
    show(found)
    text = capsys.readouterr().out
    for words in (fastlstm.__version__, torch.__version__, "compiled library", "why not another"):
        assert words in text
    if found["library"]["loaded"]:
        cpu = found["library"]["cpu"]
        assert f"{cpu['isa']}: {cpu['why']}" in text
        assert all(product in text for product in cpu["products"].values())
    for entry in found["backends"]:
        lines = [line.split() for line in text.splitlines()]
        assert any(line[:3] == [entry["device"], entry["dtype"], entry["backend"]] for line in lines)
        for reason in entry["refused"].values():
            assert reason in text


def test_without_rich_it_is_plain_text(monkeypatch, capsys):
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    __main__.main([])
    assert capsys.readouterr().out.startswith("fastlstm ")


def as_module(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastlstm", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def test_as_a_module():
    found = as_module("--json", FASTLSTM_NATIVE="0")
    assert found.returncode == 0, found.stderr
    library = json.loads(found.stdout)["library"]
    assert (library["loaded"], library["reason"]) == (False, "FASTLSTM_NATIVE=0 is set")
    assert library["cpu_isa"] is None and library["cpu"] is None


@pytest.mark.skipif(native.load() is not None, reason="the library is not built")
def test_why_these_kernels():
    """The same from process to process, and another reason where they are asked for by name."""
    named, generic = (
        json.loads(as_module("--json", FASTLSTM_CPU_ISA=isa).stdout)["library"]["cpu"]
        for isa in (native.cpu_isa(), "generic")
    )
    assert named.pop("why") == generic["why"] == "FASTLSTM_CPU_ISA names it"
    assert named.items() <= report.collect()["library"]["cpu"].items()
    assert generic["isa"] == "generic"
    assert set(generic["products"].values()) == {"multiply-adds"}


def test_help_and_unknown_arguments(capsys):
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--help"])
    assert "--json" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["--xml"])


@pytest.mark.skipif(family.load() is not None, reason=str(family.load()))
def test_cuda_kernels(monkeypatch, capsys):
    """On a device that tests/simt simulates."""
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "grid step")
    found = report.collect() | {"cuda_kernels": report.cuda_kernels("simt_kernels", 0)}
    assert found["cuda_kernels"] == {"chosen": "grid step", "possible": ["cluster", "grid", "step"]}
    assert os.environ.pop("FASTLSTM_CUDA_KERNELS") == "grid step"
    with family.simulated(capability_major=8, cooperative=0):
        less = report.cuda_kernels("simt_kernels", 0)
    assert less == {"chosen": "auto", "possible": ["step"]} and "FASTLSTM_CUDA_KERNELS" not in os.environ
    for kernels in (found["cuda_kernels"], less):
        report._show_plain(found | {"cuda_kernels": kernels})
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("CUDA kernels"))
    assert "cluster, grid, step; FASTLSTM_CUDA_KERNELS=grid step allows no others" in first
    assert second.endswith("step; this GPU, or this process's part of it, has no room for cluster and grid")
