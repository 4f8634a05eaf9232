"""Lanes (fastlstm/stack/wavefront/lanes.py) whose work waits until they close and then runs in an
order that a rule draws, out of all that waits and marks allow: what streams of a GPU may do, worse
than they do it.

Each lane's work is one piece here: a piece never overlaps another, but anything may come between
two of one lane.
"""

import contextlib
import random

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlstm.stack.wavefront import lanes

# Among lanes that can go on, which goes: those that wait for others as early as they may, as late,
# or any.
RULES = {
    "last lane first": lambda ready, rng: ready[-1],
    "first lane first": lambda ready, rng: ready[0],
    "any": lambda ready, rng: rng.choice(ready),
}
CALLER = "the caller"


class Deferred:
    """A factory of lanes in the place of `open_lanes`. lost: the number of a wait, counted over all
    lanes it opens, that is not made."""

    def __init__(self, rule: str, seed: int = 0, lost: int | None = None) -> None:
        self.rule, self.rng, self.lost = RULES[rule], random.Random(seed), lost
        self.waits, self.opened, self.running = 0, 0, CALLER

    def __call__(self, device, count):
        if count == 1:
            return lanes.OneLane()
        self.opened += 1
        return _Lanes(self, count)


class _Lanes:
    def __init__(self, factory: Deferred, count: int) -> None:
        self.factory, self.queues, self.marks = factory, [[] for _ in range(count)], 0

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error is None:
            self._run()

    def run(self, lane, work):
        self.queues[lane].append(("run", work))

    def mark(self, lane):
        self.marks += 1
        self.queues[lane].append(("mark", self.marks))
        return self.marks

    def wait(self, lane, mark):
        self.factory.waits += 1
        if self.factory.waits - 1 != self.factory.lost:
            self.queues[lane].append(("wait", mark))

    def _run(self):
        reached = set()
        while any(self.queues):
            ready = [
                lane
                for lane, queue in enumerate(self.queues)
                if queue and (queue[0][0] != "wait" or queue[0][1] in reached)
            ]
            assert ready, "every lane waits for another"
            lane = self.factory.rule(ready, self.factory.rng)
            kind, what = self.queues[lane].pop(0)
            if kind == "run":
                self.factory.running = lane
                what()
                self.factory.running = CALLER
            elif kind == "mark":
                reached.add(what)


@contextlib.contextmanager
def opened_as(factory):
    """`factory` in the place of `lanes.open_lanes`."""
    before = lanes.open_lanes
    lanes.open_lanes = factory
    try:
        yield factory
    finally:
        lanes.open_lanes = before


class Owners(TorchDispatchMode):
    """Who allocated each memory, the caller or a lane; an AssertionError where a lane uses what
    another allocated, or the caller what a lane did: a GPU's allocator might have given it away."""

    def __init__(self, factory: Deferred) -> None:
        super().__init__()
        self.factory, self.owners, self.checked = factory, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        here = self.factory.running
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for tensor in given:
            owner = self.owners.get(_memory(tensor), CALLER)
            assert not tensor.numel() or owner in (CALLER, here), f"{func}: {here} uses memory of lane {owner}"
            self.checked += 1
        results = func(*args, **(kwargs or {}))
        known = {_memory(t) for t in given}
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and _memory(tensor) not in known:
                self.owners[_memory(tensor)] = here
        return results


def _memory(tensor) -> int:
    return tensor.untyped_storage()._cdata
