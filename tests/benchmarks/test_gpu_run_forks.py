"""The processes of a GPU run, forked from one that has imported what they need."""

import os
import signal
import sys
import threading
import time
import types

import pytest

from benchmarks.gpu import suite
from benchmarks.gpu.drive import drive, kill
from benchmarks.gpu.forks import Forks
from benchmarks.gpu.journal import Journal

SECONDS = 60.0


def main(arguments):
    """What a child does, in the words of its first argument."""
    what, *rest = arguments
    if what == "say":
        print("here", os.environ.get("A_NAME"), os.environ.get("ANOTHER"), sys.argv, flush=True)
    elif what == "wait":
        print("waits", flush=True)
        time.sleep(600)
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "raise":
        raise ValueError("no more")
    elif what == "exit":
        sys.exit(int(rest[0]))
    return 0


@pytest.fixture
def forks(monkeypatch):
    """A server whose children find a module that is in no file: they have what it has imported."""
    monkeypatch.setitem(sys.modules, "a_part", types.SimpleNamespace(main=main))
    monkeypatch.setenv("ANOTHER", "old")
    made = Forks()
    yield made
    made.end()


def start(forks, log, *arguments, env=None):
    with log.open("ab") as out:
        return forks.start(["a_part", *arguments], os.environ if env is None else env, out)


def test_a_child_has_its_arguments_environment_and_log(forks, tmp_path):
    log = tmp_path / "log"
    env = {k: v for k, v in os.environ.items() if k != "ANOTHER"} | {"A_NAME": "new"}
    child = start(forks, log, "say", "more", env=env)
    assert child.wait(SECONDS) == 0
    assert log.read_text() == "here new None ['a_part', 'say', 'more']\n"
    assert child.pid != os.getpid() and "A_NAME" not in os.environ


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["crash"], -signal.SIGTERM), (["raise"], 1), (["exit", "5"], 5), (["say"], 0)],
)
def test_a_childs_end_is_told(arguments, status, forks, tmp_path):
    log = tmp_path / "log"
    assert start(forks, log, *arguments).wait(SECONDS) == status
    assert ("ValueError: no more" in log.read_text()) == (arguments == ["raise"])


def test_a_module_that_is_not_there_is_an_error_of_the_child(forks, tmp_path):
    log = tmp_path / "log"
    with log.open("ab") as out:
        child = forks.start(["no_such_module"], os.environ, out)
    assert child.wait(SECONDS) == 1
    assert "no_such_module" in log.read_text()


def wait_for(log, text):
    limit = time.time() + SECONDS
    while time.time() < limit and not (log.exists() and text in log.read_text()):
        time.sleep(0.02)
    assert text in log.read_text()


def test_several_at_once_and_one_that_is_killed(forks, tmp_path):
    log = tmp_path / "log"
    hung = start(forks, log, "wait")
    wait_for(log, "waits")
    found = []

    def one(k):
        found.append((k, start(forks, tmp_path / str(k), "exit", str(k)).wait(SECONDS)))

    threads = [threading.Thread(target=one, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(k, k) for k in range(4)]
    assert hung.poll() is None
    kill(hung)
    assert hung.poll() == -signal.SIGKILL


def test_what_was_started_ends_with_the_server(forks, tmp_path):
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process of its parent's death")
    log = tmp_path / "log"
    child = start(forks, log, "wait")
    wait_for(log, "waits")
    os.kill(forks.pid, signal.SIGKILL)
    assert child.wait(SECONDS) == -signal.SIGKILL
    with pytest.raises((RuntimeError, OSError)):
        start(forks, log, "say")


def test_drive_goes_on_after_a_forked_child_that_breaks(forks, tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", "now")
    journal.mark("p/1", "cuda")
    outcome = drive(
        ["a_part", "crash"], journal, "p/", stop=time.time() + SECONDS, log=tmp_path / "log",
        start=forks.start,
    )  # fmt: skip
    # The first broke at the mark, the second before any.
    assert outcome.broken == ["p/1 cuda: killed by signal SIGTERM"]
    assert outcome.state == "failed"


def test_what_a_run_waits_for_first_comes_first():
    files = ["test_device_compile.py", "test_device_ops.py", "test_device_graphs.py", "test_x.py"]
    ordered = sorted(files, key=suite.place)
    assert ordered == ["test_device_ops.py", "test_device_graphs.py", "test_device_compile.py", "test_x.py"]
