"""The table of configurations, what decides among its rows, and whether Triton is there at all."""

import subprocess
import sys
from importlib import metadata
from itertools import pairwise

import pytest
import torch

from fastlstm.backends import triton as triton_kernels
from fastlstm.backends.triton import configs
from fastlstm.backends.triton.configs import ANY, TABLE, WAYS, choose

passes = pytest.mark.parametrize(("which", "kind"), TABLE, ids="-".join)


@passes
def test_rows_are_of_use(which, kind):
    """Each row has a call that it serves, and the last row serves any call on any GPU."""
    rows = TABLE[which, kind]
    assert (rows[-1].max_n, rows[-1].max_h, rows[-1].projected) == (ANY, ANY, True)
    assert rows[-1].shared == min(row.shared for row in rows if row.config.way == "step")
    for row in rows[:-1]:
        assert choose(which, kind, min(row.max_n, 4096), min(row.max_h, 4096)) == row.config
    for narrow, wide in pairwise(rows):
        assert narrow.max_h <= wide.max_h


@passes
def test_configurations_are_well_formed(which, kind):
    for row in TABLE[which, kind]:
        config = row.config
        blocks = (config.block_n, config.block_h, config.block_k)
        assert config.way in WAYS
        assert all(block & (block - 1) == 0 for block in blocks)
        assert config.num_warps in (1, 2, 4, 8, 16) and 1 <= config.num_stages <= 8
        if kind != "float64":
            assert min(blocks) >= 16
        if config.way == "resident":
            assert config.block_h >= row.max_h


@passes
@pytest.mark.parametrize("way", WAYS)
def test_a_way_is_taken_where_it_fits(which, kind, way):
    rows = TABLE[which, kind]
    there = any(row.config.way == way for row in rows)
    for width in (1, 17, 64, 129, 4097):
        for projected in (False, True):
            config = choose(which, kind, 16, width, projected=projected, way=way)
            if way == "resident":
                fits = there and any(
                    row.config.way == way and width <= row.config.block_h and (row.projected or not projected)
                    for row in rows
                )
                assert (config.way == way) == fits
                assert config.way != way or width <= config.block_h
            else:
                assert (config.way == way) == there


@passes
def test_no_configuration_takes_more_memory_than_there_is(which, kind):
    rows = TABLE[which, kind]
    for shared in (0, 8, 64, 99, 163, 227):
        for width in (16, 64, 128, 256, 1024):
            config = choose(which, kind, 16, width, shared=shared)
            (row,) = (row for row in rows if row.config == config)
            assert row.shared <= shared or row is rows[-1]


def test_a_projection_is_not_taken_by_rows_without_room():
    assert choose("forward", "16bit", 16, 128).way == "resident"
    assert choose("forward", "16bit", 16, 128, projected=True).way == "sequence"


def test_arithmetic():
    cases = {
        (torch.bfloat16, True): "16bit",
        (torch.float16, False): "16bit",
        (torch.float32, True): "tf32",
        (torch.float32, False): "ieee",
        (torch.float64, True): "float64",
    }
    assert {case: configs.arithmetic(*case) for case in cases} == cases


def test_the_variable_names_a_way(monkeypatch):
    monkeypatch.delenv(configs.WAY_VARIABLE, raising=False)
    assert configs.forced_way() is None
    for way in ("", *WAYS):
        monkeypatch.setenv(configs.WAY_VARIABLE, way)
        assert configs.forced_way() == (way or None)
    monkeypatch.setenv(configs.WAY_VARIABLE, "fast")
    with pytest.raises(ValueError, match="FASTLSTM_TRITON_WAY: got 'fast', expected one of resi"):
        configs.forced_way()


@pytest.fixture
def installed(monkeypatch):
    """A function that says which versions of which packages there are."""

    def say(**versions):
        def version(package):
            if package not in versions:
                raise metadata.PackageNotFoundError(package)
            return versions[package]

        monkeypatch.setattr(metadata, "version", version)
        triton_kernels.available.cache_clear()

    yield say
    monkeypatch.undo()
    triton_kernels.available.cache_clear()


def test_why_triton_is_not_available(installed, monkeypatch):
    installed()
    assert triton_kernels.available() == ("Triton is not installed: pip install 'triton>=3.6' (Linux)")
    installed(triton="3.5.1")
    assert triton_kernels.available() == ("Triton 3.5.1 is too old: pip install 'triton>=3.6'")
    monkeypatch.setitem(sys.modules, "triton", None)
    installed(**{"pytorch-triton-rocm": "3.10.0+git1"})
    assert triton_kernels.available().startswith("Triton 3.10.0+git1 cannot be imported: ")


def test_importing_the_package_imports_no_triton():
    code = "import sys, fastlstm.backends.triton.configs; assert 'triton' not in sys.modules"
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
