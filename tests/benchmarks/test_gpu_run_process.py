"""What keeps a GPU run alive: the journal, children that crash, hang or lose the device, and a
worker that goes on without the contender that did it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.common.machine import ROOT
from benchmarks.common.peers import TorchLSTM
from benchmarks.common.shapes import Case
from benchmarks.gpu import measure, worker
from benchmarks.gpu.cells import GpuCell
from benchmarks.gpu.contenders import Contender
from benchmarks.gpu.device import DryDevice
from benchmarks.gpu.drive import drive
from benchmarks.gpu.journal import Journal, last_stamp, stamp_of


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl", "now")


def test_records_are_those_of_the_stamp_and_a_cut_line_is_none(journal):
    Journal(journal.path, "before").append("row", "a", row=1)
    journal.append("row", "a", row=2)
    with journal.path.open("a") as file:
        file.write('{"kind": "row", "key": "b", "st')
    assert [r["row"] for r in journal.records()] == [2]
    assert journal.latest("row")["a"]["row"] == 2


def test_a_mirror_gets_what_the_other_has(tmp_path):
    first = Journal(tmp_path / "a", "now")
    first.append("row", "x", row=1)
    Journal(tmp_path / "b", "now").append("row", "y", row=2)
    both = Journal(tmp_path / "a", "now", tmp_path / "b")
    both.merge()
    both.append("row", "z", row=3)
    for name in ("a", "b"):
        assert set(Journal(tmp_path / name, "now").latest("row")) == {"x", "y", "z"}


def test_what_is_in_progress(journal):
    journal.mark("p/1", "cuda")
    assert journal.in_progress("p/")["contender"] == "cuda"
    assert journal.in_progress("q/") is None
    journal.append("row", "p/1", row={})
    assert journal.in_progress("p/") is None
    journal.mark("p/2", "cuda")
    journal.append("broken", "p/2", contender="cuda", reason="")
    assert journal.in_progress("p/") is None


def test_the_stamp_is_of_sources_gpu_and_torch(journal):
    described = {"gpu": "A", "torch": "2"}
    stamps = {
        stamp_of(described, False),
        stamp_of(described, True),
        stamp_of(described | {"gpu": "B"}, False),
        stamp_of(described | {"torch": "3"}, False),
    }
    assert len(stamps) == 4
    journal.append("session", "session", machine=described)
    assert last_stamp(journal.path) == "now"
    assert last_stamp(journal.path.with_name("none")) is None


# A child that goes through the items 0 to 3, skipping those that the journal has, and does in one
# of them what its argument says. It knows the journal's lines, and imports nothing slow.
CHILD = """
import json, os, signal, sys, time
given = json.loads(os.environ["FASTLSTM_GPU_JOURNAL"])
def write(**record):
    with open(given["path"], "a") as file:
        file.write(json.dumps({"stamp": given["stamp"], **record}) + "\\n")
lines = [json.loads(line) for line in open(given["path"])] if os.path.exists(given["path"]) else []
seen = {r["key"] for r in lines if r["kind"] in ("row", "broken")}
for k in range(4):
    key = f"p/{k}"
    if key in seen:
        continue
    write(kind="mark", key=key, contender="cuda")
    if k == 2:
        what = sys.argv[1]
        if what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "hang":
            time.sleep(600)
        elif what == "lost":
            write(kind="broken", key=key, contender="cuda", reason="said so")
            sys.exit(70)
        elif what == "exit":
            sys.exit(5)
    write(kind="row", key=key)
"""


def driven(journal, tmp_path, what, **options):
    log = tmp_path / "log"
    options = {"stop": time.time() + 60, "pulse": [journal.path], **options}
    command = [sys.executable, "-S", "-c", CHILD, what]
    return drive(command, journal, "p/", log=log, **options)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("crash", "killed by signal SIGSEGV"),
        ("hang", "no sign of life for 1 s"),
        ("lost", "said so"),
        ("exit", "ended with status 5"),
    ],
)
def test_a_child_that_breaks_is_recorded_and_the_rest_is_run(what, reason, journal, tmp_path):
    outcome = driven(journal, tmp_path, what, stall=1.0)
    assert outcome.state == "finished"
    assert set(journal.latest("row")) == {"p/0", "p/1", "p/3"}
    (broken,) = journal.records("broken")
    assert (broken["key"], broken["contender"]) == ("p/2", "cuda")
    assert reason in broken["reason"]


def test_the_end_of_the_time_breaks_nothing(journal, tmp_path):
    outcome = driven(journal, tmp_path, "hang", stop=time.time() + 1.5)
    assert outcome.state == "time"
    assert not journal.records("broken")
    assert journal.in_progress("p/")["key"] == "p/2"


def test_a_child_that_never_starts_is_shown(journal, tmp_path):
    command = [sys.executable, "-c", "import no_such_module"]
    outcome = drive(command, journal, "p/", stop=time.time() + 60, log=tmp_path / "log")
    assert outcome.state == "failed"
    assert "no_such_module" in outcome.why


def test_a_child_dies_with_its_parent(journal, tmp_path):
    """Where the parent is killed outright, as at the end of a lease."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process of its parent's death")
    code = (
        "import time; from pathlib import Path; from benchmarks.gpu.drive import drive; "
        "from benchmarks.gpu.journal import Journal; import sys; folder = Path(sys.argv[1]); "
        "child = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'; "
        "drive([sys.executable, '-S', '-c', child], Journal(folder / 'j', 's'), 'p', "
        "stop=time.time() + 99, log=folder / 'log')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    log = tmp_path / "log"
    deadline = time.time() + 60
    while time.time() < deadline and not (log.exists() and log.read_text().strip()):
        time.sleep(0.05)
    child = int(log.read_text())
    parent.kill()
    parent.wait()
    while time.time() < deadline and Path(f"/proc/{child}").exists():
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        if Path(f"/proc/{child}").exists():
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child outlived its parent")


class Peer(TorchLSTM):
    """nn.LSTM, but for what a test makes of its output."""

    def __init__(self, change):
        self.change = change

    def build(self, problem):
        runner = super().build(problem)
        inner = runner.forward
        runner.forward = lambda x: self.change(*inner(x))
        return runner


def off(y, *state):
    return y * 1.05, *state


def boom(*_):
    raise RuntimeError("boom")


def full(*_):
    raise torch.cuda.OutOfMemoryError("out of memory")


CELLS = [GpuCell(Case(T, 2, 5, 5), "fp32", mode) for T in (3, 4) for mode in ("infer", "train")]


@pytest.fixture
def run(monkeypatch, journal):
    """Run CELLS with nn.LSTM and, as the backend cuda, a peer; gives the rows."""

    def go(change, device=None):
        peers = [Contender("nn.LSTM", TorchLSTM()), Contender("cuda", Peer(change))]
        monkeypatch.setattr(measure, "contenders_of", lambda cell: peers)
        monkeypatch.setattr(worker, "contenders_of", lambda cell: peers)
        monkeypatch.setattr(worker.stand_ins, "shrink", lambda case: case)
        made = worker.Worker(device or DryDevice(), journal, "edges", time.time() + 60, 0.001)
        made.run(CELLS)
        return [r["row"] for r in journal.records("row")]

    return go


def test_a_right_contender_is_timed(run):
    rows = run(lambda *results: results)
    assert len(rows) == 4
    assert {row["status"] for row in rows} == {"ok"}
    assert set(rows[0]["ratios"]) == {"cuda", "cuda graph"}


def test_a_wrong_result_is_loud_and_never_timed(run):
    for row in run(off):
        assert row["status"] == "failed"
        assert "cuda: WrongResult" in row["error"]
        assert "is off by" in row["error"]
        assert set(row["times"]) == {"nn.LSTM", "nn.LSTM graph"}


def test_an_error_of_ours_fails_the_cell(run):
    for row in run(boom):
        assert (row["status"], row["error"]) == ("failed", "cuda: RuntimeError: boom")


def test_a_full_memory_is_only_noted(run):
    for row in run(full):
        assert "out of memory" in row["notes"]["cuda"]
        assert "nothing to compare" in row["error"]


class Broken(DryDevice):
    """A device that cannot be used any more once something has gone wrong."""

    def illness(self):
        return "an illegal access"


def test_a_lost_device_is_recorded_and_the_next_worker_leaves_the_contender_out(run, journal):
    for _ in range(worker.GIVE_UP_AFTER):
        with pytest.raises(measure.ContextLost, match="cuda"):
            run(boom, Broken())
    broken = journal.records("broken")
    assert {r["contender"] for r in broken} == {"cuda"}
    assert "an illegal access" in broken[0]["reason"]
    # The cells that it broke have a row now, all but the last; it is given up everywhere.
    rows = run(boom, Broken())
    assert len(rows) == len(CELLS)
    assert {row["status"] for row in rows} == {"failed"}
    assert any("given up after 3 cells" in row["error"] for row in rows)


def test_cells_that_do_not_fit_are_left(journal):
    made = worker.Worker(DryDevice(), journal, "edges", time.time() - 1, 0.001)
    assert made.run(CELLS) == len(CELLS)
    assert not journal.records("row")


def test_a_cell_that_was_under_way_comes_last(run, journal):
    journal.mark(CELLS[0].key("edges"), "cuda")
    run(lambda *results: results)
    keys = list(journal.latest("row"))
    assert keys[-1] == CELLS[0].key("edges")


def test_a_broken_setup_is_a_row(monkeypatch, journal):
    def fail(*_):
        raise ValueError("no problem")

    monkeypatch.setattr(worker, "make_bench", fail)
    worker.Worker(DryDevice(), journal, "edges", time.time() + 60, 0.001).run(CELLS[:1])
    (record,) = journal.records("row")
    assert record["row"]["error"] == "setup: ValueError: no problem"
