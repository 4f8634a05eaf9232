"""Lanes: queues of work on one device that may run concurrently, for the duration of one call.

On a GPU a lane is a stream; on other devices all lanes are the caller's own queue. Work on one lane
runs in order; work on different lanes is ordered only by waiting for marks::

    with open_lanes(device, 2) as lanes:  # all lanes run after what was submitted before
        lanes.run(0, work)
        lanes.wait(1, lanes.mark(0))  # lane 1 continues when lane 0 has reached this point
        lanes.run(1, more)
    # what is submitted from here on runs after all lanes

Memory: torch's allocator returns freed memory to the stream that allocated it. So only the lane
that allocates a tensor may use it; tensors that lanes share, or that outlive them, are allocated
before the lanes open. The caller's stream waits for all lanes at the end, also after an error, so
no lane uses what is freed afterwards.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch


class OneLane:
    """All lanes are the caller's own queue."""

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass

    def run(self, lane: int, work: Callable[[], None]) -> None:
        work()

    def mark(self, lane: int):
        """The lane's current end, for `wait`."""

    def wait(self, lane: int, mark) -> None:
        pass


class StreamLanes:
    """Lane 0 is the caller's stream, every other lane a side stream. Never blocks the host, and can
    be captured into a CUDA graph."""

    def __init__(self, device: torch.device, count: int) -> None:
        caller = torch.cuda.current_stream(device)
        self._streams = [caller, *_side_streams(caller, count - 1)]

    def __enter__(self):
        caller, *others = self._streams
        opened = caller.record_event()
        for stream in others:
            stream.wait_event(opened)
        return self

    def __exit__(self, *error) -> None:
        caller, *others = self._streams
        for stream in others:
            caller.wait_event(stream.record_event())

    def run(self, lane, work):
        if lane == 0:
            work()
            return
        with torch.cuda.stream(self._streams[lane]):
            work()

    def mark(self, lane):
        return self._streams[lane].record_event()

    def wait(self, lane, mark):
        self._streams[lane].wait_event(mark)


_POOL = 32  # streams of a device that torch hands out, one after the other and then again


class _Beside(NamedTuple):
    """The streams beside a caller's, and the handles of those that its calls have used in the graph
    that it is capturing."""

    streams: list[torch.cuda.Stream]
    in_graph: set[int]


# Of each device, by the callers' handles. Of all threads: what a lane has allocated, torch keeps for
# its stream.
_kept: dict[torch.device, dict[int, _Beside]] = {}
_keeping = threading.Lock()


def _side_streams(caller: torch.cuda.Stream, count: int) -> list[torch.cuda.Stream]:
    """Side streams of `caller`, the same at each of its calls. Callers share none, and no caller's
    stream is another's side stream: if one is capturing a graph, the other's work would be captured
    too. A side stream that turns up as a caller, or in the graph of somebody who has called nothing
    here, is taken from the caller that it served. (Two go unseen: a graph that another thread begins
    on one between this and the end of the call, and one begun on a lane of the caller's last graph,
    where the caller captures its next graph with no call outside of both in between.)"""
    with _keeping:
        of_callers = _kept.setdefault(caller.device, {})
        handle = caller.cuda_stream
        if handle not in of_callers:
            for streams, _ in of_callers.values():
                streams[:] = [s for s in streams if s.cuda_stream != handle]
        streams, in_graph = of_callers.setdefault(handle, _Beside([], set()))
        capturing = _captures(caller)
        if not capturing:
            in_graph.clear()
        streams[:] = [s for s in streams if s.cuda_stream in in_graph or not _captures(s)]
        while len(streams) < count:
            streams.append(_unshared(caller, of_callers))
        found = streams[:count]
        if capturing:
            in_graph.update(s.cuda_stream for s in found)
        return found


def _captures(stream: torch.cuda.Stream) -> bool:
    with torch.cuda.stream(stream):
        return torch.cuda.is_current_stream_capturing()


def _unshared(caller: torch.cuda.Stream, of_callers) -> torch.cuda.Stream:
    """A stream of torch's pool that neither `of_callers` nor a graph uses; `caller` if there is none."""
    taken = {s.cuda_stream for streams, _ in of_callers.values() for s in streams} | set(of_callers)
    for _ in range(_POOL):
        stream = torch.cuda.Stream(caller.device)
        if stream.cuda_stream not in taken and not _captures(stream):
            return stream
    return caller


def open_lanes(device: torch.device, count: int) -> OneLane | StreamLanes:
    """`count` lanes of a device, to be used in a `with` statement."""
    return StreamLanes(device, count) if device.type == "cuda" and count > 1 else OneLane()
