"""Lanes on the streams of a GPU: which waits for which, on streams that only take notes."""

import contextlib
import itertools
import threading

import pytest
import torch

from fastlstm.stack.wavefront import lanes


class Stream:
    """Notes in `log`, as (stream, what, event or work)."""

    numbers = itertools.count()

    def __init__(self, device):
        self.device, self.cuda_stream, self.log = device, next(self.numbers), Stream.log

    def record_event(self):
        event = object()
        self.log.append((self, "record", event))
        return event

    def wait_event(self, event):
        self.log.append((self, "wait", event))


@pytest.fixture
def gpu(monkeypatch):
    """The device; its current stream is the attribute `current` of Stream."""
    device = torch.device("cuda:0")
    Stream.log = []
    Stream.current = Stream(device)

    @contextlib.contextmanager
    def on(stream):
        before, Stream.current = Stream.current, stream
        yield
        Stream.current = before

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.current)
    monkeypatch.setattr(lanes, "_kept", threading.local())
    return device


def note(what):
    return lambda: Stream.log.append((Stream.current, "run", what))


def comes_before(log, first, second):
    """Whether the piece of work `first` must have run when `second` starts."""
    reached, streams = set(), set()  # events and streams that are known to be behind `first`
    for stream, what, thing in log:
        if (what, thing) == ("run", second):
            return stream in streams
        if (what, thing) == ("run", first) or (what == "wait" and thing in reached):
            streams.add(stream)
        elif what == "record" and stream in streams:
            reached.add(thing)
    raise AssertionError(f"{second} was not run")


def test_what_comes_before_what(gpu):
    note("before")()
    with lanes.open_lanes(gpu, 3) as opened:
        opened.run(0, note("a"))
        mark = opened.mark(0)
        opened.run(0, note("a2"))
        opened.wait(1, mark)
        opened.run(1, note("b"))
        opened.run(2, note("c"))
    note("after")()
    log = Stream.log
    for work in ("a", "a2", "b", "c"):
        assert comes_before(log, "before", work)
        assert comes_before(log, work, "after")
    assert comes_before(log, "a", "b")
    assert not comes_before(log, "a2", "b")
    assert not comes_before(log, "a", "c") and not comes_before(log, "b", "c")
    places = {work: stream for stream, what, work in log if what == "run"}
    assert places["a"] is places["before"] is places["after"]
    assert len({places[work] for work in "abc"}) == 3


def test_lanes_are_waited_for_after_an_error(gpu):
    with pytest.raises(KeyError), lanes.open_lanes(gpu, 2) as opened:
        opened.run(1, note("work"))
        raise KeyError
    note("after")()
    assert comes_before(Stream.log, "work", "after")


def test_streams_are_kept_and_no_two_callers_share_them(gpu):
    def used(count):
        with lanes.open_lanes(gpu, count) as opened:
            return [stream.cuda_stream for stream in opened._streams]

    first, again, more = used(2), used(2), used(4)
    assert first == again == more[:2]
    caller = Stream.current
    Stream.current = Stream(gpu)
    assert not set(used(4)) & set(more)
    Stream.current = caller
    found = []
    thread = threading.Thread(target=lambda: found.extend(used(3)))
    thread.start()
    thread.join()
    assert set(found) & set(more) == {caller.cuda_stream}


def test_one_queue_elsewhere():
    for device, count in ((torch.device("cpu"), 4), (torch.device("cuda:0"), 1)):
        done = []
        with lanes.open_lanes(device, count) as opened:
            opened.run(2, lambda: done.append(1))  # noqa: B023
            opened.wait(0, opened.mark(2))
            opened.run(0, lambda: done.append(2))  # noqa: B023
            assert done == [1, 2]
