"""Lanes: queues of one device's work that may run beside each other, for the length of one call.

On a GPU a lane is a stream; elsewhere there is one queue, and it is the caller's. What is
submitted to a lane runs in order; between lanes there is no order but that of marks waited for::

    with open_lanes(device, 2) as lanes:  # what was submitted before comes before all lanes
        lanes.run(0, work)
        lanes.wait(1, lanes.mark(0))  # lane 1 goes on when lane 0 has come to here
        lanes.run(1, more)
    # what is submitted from here on comes after all lanes

Memory. Torch's allocator gives memory that is freed back to the stream it was allocated on. So what
a lane allocates, that lane alone may use; what lanes share, or outlives them, is allocated before
they open. The caller waits for all lanes in the end, also when there was an error, so what it then
frees no lane still uses.
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
        """The place that the lane has come to, for `wait`."""

    def wait(self, lane: int, mark) -> None:
        pass


class StreamLanes:
    """Lane 0 is the caller's stream, each other lane a stream of its own as long as there are any.
    Nothing here waits on the host, and all of it can be captured into a CUDA graph."""

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
# Of each device: a caller's handle -> the streams beside it. Of all threads: what a lane has
# allocated, torch keeps for its stream.
_kept: dict[torch.device, dict[int, list[torch.cuda.Stream]]] = {}
_keeping = threading.Lock()


def _side_streams(caller: torch.cuda.Stream, count: int) -> list[torch.cuda.Stream]:
    """Streams beside `caller`, the same for each of its calls. Callers share none, nor is one's
    stream beside another: one may be capturing a graph, into which the other's work would come. A
    stream that comes as a caller itself is given up by the one it was beside until then."""
    with _keeping:
        of_callers = _kept.setdefault(caller.device, {})
        handle = caller.cuda_stream
        if handle not in of_callers:
            for streams in of_callers.values():
                streams[:] = [s for s in streams if s.cuda_stream != handle]
        found = of_callers.setdefault(handle, [])
        while len(found) < count:
            found.append(_unshared(caller, of_callers))
        return found[:count]


def _unshared(caller: torch.cuda.Stream, of_callers) -> torch.cuda.Stream:
    """A stream of the pool that nobody of `of_callers` has; once there is none left, `caller`."""
    taken = {s.cuda_stream for streams in of_callers.values() for s in streams} | set(of_callers)
    for _ in range(_POOL):
        stream = torch.cuda.Stream(caller.device)
        if stream.cuda_stream not in taken:
            return stream
    return caller


def open_lanes(device: torch.device, count: int) -> OneLane | StreamLanes:
    """`count` lanes of a device, to be used in a `with` statement."""
    return StreamLanes(device, count) if device.type == "cuda" and count > 1 else OneLane()
