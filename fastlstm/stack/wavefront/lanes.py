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


_kept = threading.local()


def _side_streams(caller: torch.cuda.Stream, count: int) -> list[torch.cuda.Stream]:
    """Side streams of `caller`, the same at each call from one thread. Two callers share none: if
    one is capturing a graph, the other's work would be captured too."""
    if not hasattr(_kept, "streams"):
        _kept.streams = {}
    found = _kept.streams.setdefault((caller.device, caller.cuda_stream), [])
    while len(found) < count:
        found.append(torch.cuda.Stream(caller.device))
    return found[:count]


def open_lanes(device: torch.device, count: int) -> OneLane | StreamLanes:
    """`count` lanes of a device, to be used in a `with` statement."""
    return StreamLanes(device, count) if device.type == "cuda" and count > 1 else OneLane()
