"""How many workers a call gets: torch's thread count, the cores allowed, the quota of control
groups; and what workers do that meet or wait (meetings.cpp)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pairs import needs_library

HERE = Path(__file__).parent
TESTS = HERE.parent
sys.path.insert(0, str(TESTS / "simt"))
import build  # noqa: E402

CSRC = TESTS.parent / "csrc"
V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
OTHERS = (
    "22 1 0:20 / /proc rw - proc proc rw\n34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\nodd line\n"
)
V1_MOUNT, V2_MOUNT = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup"


def quota(tmp_path, mounts: str, paths: str, files: dict) -> float:
    for name, text in {
        "proc/self/mountinfo": mounts,
        "proc/self/cgroup": paths,
        **files,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return torch.ops.fastlstm.cpu_quota(str(tmp_path))


# mounts, /proc/self/cgroup, files, cores
QUOTAS = {
    "v2": (V2.format(root="/"), "0::/\n", {f"{V2_MOUNT}/cpu.max": "150000 100000\n"}, 1.5),
    "v2 none": (V2.format(root="/"), "0::/\n", {f"{V2_MOUNT}/cpu.max": "max 100000\n"}, 0),
    "v2 no file": (V2.format(root="/"), "0::/\n", {}, 0),
    "v2 above": (
        OTHERS + V2.format(root="/"),
        "12:cpuset:/x\n0::/a/b/c\n",
        {
            f"{V2_MOUNT}/a/b/c/cpu.max": "max 100000\n",
            f"{V2_MOUNT}/a/b/cpu.max": "400000 100000\n",
            f"{V2_MOUNT}/a/cpu.max": "50000 20000\n",
            f"{V2_MOUNT}/b/cpu.max": "1000 100000\n",
        },
        2.5,
    ),
    "v1": (
        OTHERS + V1.format(root="/"),
        "5:cpuset:/other\n4:cpu,cpuacct:/job/\n",
        {
            f"{V1_MOUNT}/job/cpu.cfs_quota_us": "300000\n",
            f"{V1_MOUNT}/job/cpu.cfs_period_us": "100000\n",
            f"{V1_MOUNT}/cpu.cfs_quota_us": "-1\n",
            f"{V1_MOUNT}/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "v1 in a container": (
        V1.format(root="/docker/0a1b"),
        "4:cpu,cpuacct:/docker/0a1b\n",
        {
            f"{V1_MOUNT}/cpu.cfs_quota_us": "50000\n",
            f"{V1_MOUNT}/cpu.cfs_period_us": "100000\n",
        },
        0.5,
    ),
    "both": (
        V1.format(root="/") + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        "4:cpu,cpuacct:/\n0::/\n",
        {
            f"{V1_MOUNT}/cpu.cfs_quota_us": "200000\n",
            f"{V1_MOUNT}/cpu.cfs_period_us": "100000\n",
            f"{V2_MOUNT}/unified/cgroup.procs": "1\n",
        },
        2,
    ),
    "nothing": ("", "", {}, 0),
}


@needs_library
@pytest.mark.parametrize("case", QUOTAS)
def test_quotas(case, tmp_path):
    *given, expected = QUOTAS[case]
    assert quota(tmp_path, *given) == expected


@needs_library
def test_without_proc(tmp_path):
    assert torch.ops.fastlstm.cpu_quota(str(tmp_path)) == 0


def run(code: str, **environment) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if k != "FASTLSTM_CORES"}
    paths = (str(TESTS.parent), str(HERE), *sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


# The quota of the machine that runs this counts too: with it, this is how many workers there are.
PINNED = """
import os, torch, fastlstm
workers = torch.ops.fastlstm.cpu_workers
quota = torch.ops.fastlstm.cpu_quota("") or 1e6
cores = sorted(os.sched_getaffinity(0))
def expected(asked, allowed): return max(1, min(asked, allowed, int(quota + 0.5)))
torch.set_num_threads(len(cores) + 3)
assert workers() == expected(len(cores) + 3, len(cores))
os.sched_setaffinity(0, cores[:1])  # while it runs
assert workers() == 1
lstm, x = fastlstm.FastLSTM(256, 256), torch.randn(20, 16, 256)
y = lstm(x)[0]
y.sum().backward()
assert torch.get_num_threads() == len(cores) + 3  # torch's own is left as it is
os.sched_setaffinity(0, cores)
for asked in (1, 2, len(cores) + 3):
    torch.set_num_threads(asked)
    assert workers() == expected(asked, len(cores))
    assert lstm(x)[0].equal(y)
    assert torch.get_num_threads() == asked
print("right")
"""


@needs_library
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_no_more_workers_than_cores():
    assert run(PINNED) == ["right"]


# The variable is read once: a forked child for each value.
GIVEN = """
import os, torch, fastlstm
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
torch.set_num_threads(5)
for cores in ("3", "64", "no number"):
    pid = os.fork()
    if pid == 0:
        os.environ["FASTLSTM_CORES"] = cores
        print(torch.ops.fastlstm.cpu_workers(), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


@needs_library
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_can_be_given():
    assert run(GIVEN) == ["3", "5", "1"]


# Everything that is shared out, whoever runs it: the plan for three workers is the same.
DIGESTS = """
import torch, test_kernels_threads as cases
from hashlib import sha256
torch.set_num_threads(3)
for case in cases.CASES:
    torch.manual_seed(1)
    results = cases.run(case, cases.drawn(case)).values()
    bits = (v.contiguous().view(torch.uint8).numpy().tobytes() for v in results)
    print(sha256(b"".join(bits)).hexdigest())
"""


@needs_library
def test_the_same_bits_whoever_runs_the_parts():
    team = run(DIGESTS, FASTLSTM_CORES="3")
    assert len(team) > 5
    assert run(DIGESTS, FASTLSTM_CORES="3", OMP_THREAD_LIMIT="1") == team


@pytest.mark.skipif(not CSRC.exists(), reason="tests run outside of a source tree")
def test_meetings_and_what_sharing_gains(tmp_path):
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    program = tmp_path / "meetings"
    sources = [HERE / "meetings.cpp", CSRC / "cpu" / "barrier.cpp"]
    command = [compiler, "-O1", "-std=c++17", "-pthread", f"-I{CSRC}", *sources, "-o", program]
    subprocess.run(list(map(str, command)), check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "")
