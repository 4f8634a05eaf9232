"""What the tests on a GPU share: which of them run where, settings, and the journal of ./run gpu.

Outside of ./run gpu this is an ordinary folder of tests. Under it, each test writes into a journal
when it begins and when it has ended, runs only if it has not ended in an earlier run, and only in
one of the processes that share the device.
"""

import os
from pathlib import Path

# Before the first call of cuBLAS: it is deterministic only with a workspace of its own.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from benchmarks.common import stand_ins
from benchmarks.common.precision import fp32_precision
from benchmarks.gpu import suite
from benchmarks.gpu.device import open_device
from benchmarks.gpu.drive import LOST
from benchmarks.gpu.journal import Journal

if stand_ins.is_dry():
    stand_ins.prepare_environment()
    stand_ins.fake_backends()

HAVE_GPU = torch.cuda.is_available()
REDUCED = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
HERE = Path(__file__).parent
# On a GPU, other packages warn of much that is not ours; of us, a warning is still an error.
WARNINGS = pytest.mark.filterwarnings("default", "error:fastlstm:RuntimeWarning")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(WARNINGS)


def pytest_configure(config):
    journal = Journal.from_environment()
    if journal is not None:
        shard = os.environ[suite.SHARD]
        k, n = map(int, shard.split("/"))
        prefix = suite.prefix(os.environ[suite.SALT], shard)
        config.pluginmanager.register(Recorder(journal, prefix, (k, n)))


@pytest.fixture(scope="session")
def device():
    """The device under test; in a dry run the CPU."""
    return torch.device("cpu" if stand_ins.is_dry() else "cuda")


@pytest.fixture(params=stand_ins.BACKENDS)
def backend(request, device):
    """Each GPU backend by name, where it serves this device."""
    from fastlstm.backends import table

    row = next(row for row in table.TABLE if row.name == request.param)
    reason = row.reject(table.Call.of(device, torch.float32))
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def real_gpu():
    if not HAVE_GPU:
        pytest.skip("a dry run has no GPU for this")


@pytest.fixture(autouse=True)
def full_precision():
    """float32 in full, in nn.LSTM and in products too, and all sums in float32; a test of TF32 asks
    for it."""
    products = torch.backends.cuda.matmul
    before = [getattr(products, name) for name in REDUCED]
    for name in REDUCED:
        setattr(products, name, False)
    with fp32_precision("ieee"):
        yield
    for name, value in zip(REDUCED, before, strict=True):
        setattr(products, name, value)


class Recorder:
    """Selects the tests of one process, and writes into the journal what becomes of them."""

    def __init__(self, journal: Journal, prefix: str, shard: tuple[int, int]) -> None:
        self.journal, self.prefix, self.shard = journal, prefix, shard
        self.reports: dict[str, list] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        k, n = self.shard
        done = set(suite.results(self.journal))
        # Shared out in this order, so that every process has of the first ones first.
        items.sort(key=lambda item: suite.place(item.path.name))
        mine = [item for i, item in enumerate(items) if i % n == k - 1]
        left = [item for item in mine if item.nodeid not in done]
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = left

    def pytest_runtest_logstart(self, nodeid):
        self.reports[nodeid] = []
        self.journal.mark(self.prefix + nodeid, "test")

    def pytest_runtest_logreport(self, report):
        self.reports[report.nodeid].append(report)

    def pytest_runtest_logfinish(self, nodeid):
        reports = self.reports.pop(nodeid)
        worst = next((r for r in reports if r.failed), None)
        skipped = next((r for r in reports if r.skipped), None)
        shown = worst or skipped
        outcome = "failed" if worst else "skipped" if skipped else "passed"
        reason = shown.longrepr[2] if shown is skipped and shown else shown and shown.longreprtext
        seconds = round(sum(r.duration for r in reports), 2)
        given = {"outcome": outcome, "reason": (reason or "")[-1500:], "seconds": seconds}
        self.journal.append("test", self.prefix + nodeid, **given)
        # After a crashed kernel every later test would fail in this process.
        if worst and HAVE_GPU and open_device(False).illness():
            pytest.exit("the GPU cannot be used any more in this process", LOST)
