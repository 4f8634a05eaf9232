"""The tuner without a GPU: its candidates, and the table it prints for times that are made up."""

import subprocess
import sys

import pytest

from fastlstm.backends import triton as triton_kernels
from fastlstm.backends.triton import configs, tune

kinds = pytest.mark.parametrize("kind", tune.DTYPES)
passes = pytest.mark.parametrize("which", tune.PASSES)


@kinds
@passes
@pytest.mark.parametrize("width", [*tune.WIDTHS, 96, 4096])
def test_candidates(which, kind, width):
    found = list(tune.candidates(which, kind, width))
    assert len(found) == len(set(found)) > 0
    for config in found:
        assert config.way in configs.WAYS
        assert config.way != "resident" or config.block_h >= width
        assert all(b >= 16 and b & (b - 1) == 0 for b in config[1:4])


@kinds
@passes
def test_the_printed_table_is_the_fastest(which, kind, monkeypatch, capsys):
    """Few rows are served best by one way, many by another, and for H = 64 one serves both."""
    asked = []

    def measure(which, arguments, config):
        N, width = arguments
        asked.append(config)
        if config.num_warps == 8:
            raise RuntimeError("out of resource: shared memory")
        best = "sequence" if N == 16 or width == 64 else "step"
        return (1.0 if config.way == best else 2.0) + config.block_k / 1e3, 20_000

    monkeypatch.setattr(tune, "problem", lambda which, kind, N, width: (N, width))
    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: True)
    tune.main(["--passes", which, "--arithmetic", kind, "--widths", "256", "64"])
    printed, told = capsys.readouterr()
    table = eval(f"{{{printed}}}", vars(configs))
    assert list(table) == [(which, kind)]
    *found, last = table[which, kind]
    assert last == configs.TABLE[which, kind][-1]
    assert [(row.max_n, row.max_h, row.config.way, row.shared) for row in found] == [
        (configs.ANY, 64, "sequence", 32),
        (32, configs.ANY, "sequence", 32),
        (configs.ANY, configs.ANY, "step", 32),
    ]
    assert {row.config.block_k for row in found} == {32}
    assert "out of resource" in told and "1.03 us a step" in told
    assert set(asked) == {config for width in (64, 256) for config in tune.candidates(which, kind, width)}


def test_the_table_prints_as_it_stands():
    for (which, kind), rows in configs.TABLE.items():
        assert eval(f"{{{tune.text(which, kind, rows)}}}", vars(configs)) == {(which, kind): rows}


def test_dry_run_needs_neither_gpu_nor_triton():
    code = "import sys; sys.modules['triton'] = None; from fastlstm.backends.triton import tune\n"
    code += "tune.main(['--dry-run', '--arithmetic', '16bit', '--widths', '64', '1024'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = found.stdout.splitlines()
    assert {line.split()[0] for line in lines} == set(tune.PASSES)
    assert "forward 16bit H = 64 resident 16 64 64 4 1" in lines


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tune.main([])
    assert "needs a GPU, and torch finds none; --dry-run lists" in capsys.readouterr().err


@pytest.mark.skipif(triton_kernels.available() is not None, reason=str(triton_kernels.available()))
@kinds
@passes
def test_what_is_measured_can_be_launched(which, kind, monkeypatch):
    """The arguments made for a measurement are those of the launch, checked without memory."""
    import torch

    from fastlstm.backends.triton import launch

    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda shape, device, dtype: randn(shape, device="meta", dtype=dtype))
    arguments = tune.problem(which, kind, 16, 64)
    monkeypatch.setattr(launch._Plan, "run", lambda plan, kernel, grid, *args: None)
    config = next(iter(tune.candidates(which, kind, 64)))
    results = getattr(launch, which)(*arguments, config=config)
    assert results[0].shape[:2] == (tune.STEPS, 16)
