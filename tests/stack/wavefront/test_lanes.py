"""Lanes on the streams of a GPU: which waits for which, on streams that only take notes."""

import contextlib
import itertools
import threading

import pytest
import torch

from fastlstm.stack.wavefront import lanes


class Stream:
    """Notes in `log`, as (stream, what, event or work). As torch does, hands out the numbers of a
    pool of 32 in turns."""

    def __init__(self, device):
        self.device, self.cuda_stream, self.log = device, next(Stream.pool), Stream.log

    def record_event(self):
        event = object()
        self.log.append((self, "record", event))
        return event

    def wait_event(self, event):
        self.log.append((self, "wait", event))


@pytest.fixture
def gpu(monkeypatch):
    """The device; its current stream is the attribute `current` of Stream, and `capturing` has the
    numbers of the streams in somebody's graph."""
    device = torch.device("cuda:0")
    Stream.capturing = set()
    Stream.log, Stream.pool = [], itertools.cycle(range(1, 33))
    Stream.current = Stream(device)

    @contextlib.contextmanager
    def on(stream):
        before, Stream.current = Stream.current, stream
        yield
        Stream.current = before

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.current)
    monkeypatch.setattr(
        torch.cuda, "is_current_stream_capturing", lambda: Stream.current.cuda_stream in Stream.capturing
    )
    monkeypatch.setattr(lanes, "_kept", {})
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


def used(gpu, count, caller=None):
    """The numbers of the streams that a caller's lanes are on."""
    Stream.current = caller or Stream.current
    with lanes.open_lanes(gpu, count) as opened:
        return [stream.cuda_stream for stream in opened._streams]


def test_streams_are_kept_for_a_caller_in_all_threads(gpu):
    first, again, more = used(gpu, 2), used(gpu, 2), used(gpu, 4)
    assert first == again == more[:2] and len(set(more)) == 4
    found = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(used(gpu, 4)))
        thread.start()
        thread.join()
    assert found == [more, more]


@pytest.mark.parametrize("count", [5, 8])
def test_no_two_callers_share_a_stream(gpu, count):
    """With 5 lanes each the pool is just large enough; with 8 it is not, and callers that come last
    have lanes on their own stream."""
    callers = [Stream.current, *(Stream(gpu) for _ in range(5))]
    for caller in callers:
        used(gpu, count, caller)
    found = [used(gpu, count, caller) for caller in callers]
    assert [lanes_of[0] for lanes_of in found] == [caller.cuda_stream for caller in callers]
    sets = [set(lanes_of) for lanes_of in found]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert all(len(s) == count for s in sets) == (count == 5)
    assert [used(gpu, count, caller) for caller in callers] == found


def test_a_stream_that_becomes_a_caller_is_beside_no_other(gpu):
    """As where a graph is captured on a stream of the pool that a lane was on before."""
    first = Stream.current
    before = used(gpu, 4)
    second = next(s for s in iter(lambda: Stream(gpu), None) if s.cuda_stream == before[2])
    of_second, after = used(gpu, 4, second), used(gpu, 4, first)
    assert not set(of_second) & set(after) and not set(of_second) & {before[1], before[3]}
    assert after[:3] == [before[0], before[1], before[3]]
    assert len(set(after)) == len(set(of_second)) == 4


def test_no_lane_is_in_a_graph_of_somebody_else(gpu):
    """As where a graph is captured on a stream of the pool that calls nothing here."""
    first = used(gpu, 4)
    Stream.capturing = {first[2], *range(6, 32)}
    second = used(gpu, 4)
    assert second[:3] == [first[0], first[1], first[3]] and not set(second) & Stream.capturing
    Stream.capturing = set()
    assert used(gpu, 4) == second

    # The caller's own graph takes its lanes along, and a lane that somebody's has taken is not one.
    Stream.capturing = {second[0], second[3], *range(6, 32)}
    third = used(gpu, 4)
    assert third[:3] == second[:3] and third[3] not in Stream.capturing
    Stream.capturing |= set(third)
    assert used(gpu, 4) == used(gpu, 3) + third[3:] == third
    Stream.capturing = set(third[1:])
    assert not set(used(gpu, 4)) & Stream.capturing


def test_one_queue_elsewhere():
    for device, count in ((torch.device("cpu"), 4), (torch.device("cuda:0"), 1)):
        done = []
        with lanes.open_lanes(device, count) as opened:
            opened.run(2, lambda: done.append(1))  # noqa: B023
            opened.wait(0, opened.mark(2))
            opened.run(0, lambda: done.append(2))  # noqa: B023
            assert done == [1, 2]
