"""What the exchanges between blocks wait for, counted in machine code: in the probes of
benchmarks/gpu, whose exchanges are the kernels' own, compiled for sm_90a."""

import re
import shutil
import subprocess
from collections import Counter
from functools import cache

import pytest
from cuda_usage import find_cuobjdump

from benchmarks.common.machine import ROOT
from benchmarks.gpu import costs

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None or find_cuobjdump() is None, reason="needs nvcc and cuobjdump"
)


@cache
def machine_code(source: str, folder, *flags: str) -> dict[str, Counter]:
    """{kernel: how often each instruction}, kernels by their mangled names."""
    cubin = folder / f"{source}.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90a", "-cubin", *flags]
    command += [f"-I{ROOT / 'csrc'}", "-o", str(cubin), str(costs.SOURCES / f"{source}.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dump = [find_cuobjdump(), "-sass", str(cubin)]
    done = subprocess.run(dump, capture_output=True, text=True, check=True)
    found, kernel = {}, None
    for line in done.stdout.splitlines():
        if match := re.search(r"Function : (\w+)", line):
            kernel = found.setdefault(match[1], Counter())
        elif match := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", line):
            kernel[match[1]] += 1
    return found


def counted(source: str, kernel: str, folder, *flags: str) -> Counter:
    """How often each instruction stands in the kernels that have the name in theirs."""
    code = machine_code(source, folder, *flags)
    return sum((n for name, n in code.items() if kernel in name), Counter())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


def test_a_step_in_a_cluster_fences_shared_memory_alone(folder):
    """What concerns global memory belongs to the cluster barriers at the start and at the end."""
    found = counted("clusters", "all_gather", folder)
    barriers = found["UCGABAR_ARV"]
    assert barriers == 4  # two kernels
    assert found["SYNCS.PHASECHK.TRANS64.TRYWAIT"] > 0
    assert found["CCTL.IVALL"] == barriers
    assert found["MEMBAR.ALL.GPU"] == barriers


def test_a_step_on_the_grid_fences_once(folder):
    found = counted("grid", "by_counter", folder)
    assert found["REDG.E.ADD.S32.STRONG.GPU"] == 1
    assert found["MEMBAR.ALL.GPU"] == 1


def test_nothing_is_divided_for_what_is_copied(folder):
    found = counted("grid", "by_counter", folder)
    assert found["LDGSTS.E.BYPASS.128"] > 0
    assert not [name for name in found if name.startswith(("I2F", "F2I"))]


@pytest.mark.parametrize(("source", "kernel"), [("clusters", "all_gather"), ("grid", "by_counter")])
def test_a_wait_in_vain_traps_where_that_is_asked_for(source, kernel, folder):
    assert "BPT.TRAP" not in counted(source, kernel, folder)
    assert counted(source, kernel, folder, "-DFASTLSTM_TRAP_HANGS")["BPT.TRAP"] > 0
