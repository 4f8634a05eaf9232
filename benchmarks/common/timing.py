"""Interleaved timing: the peers take turns in one process, so a disturbance of the machine meets
all of them.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

MIN_REPS = 5
MAX_REPS = 400
WARM_UP_SECONDS = 0.02


@dataclass(frozen=True)
class Task:
    """What is timed: ``call``, and ``prepare`` before it, off the clock (resetting gradients)."""

    call: Callable[[], object]
    prepare: Callable[[], None] = lambda: None


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run the block with ``count`` intra-op threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Run the block without Python's cyclic collector, whose pauses would land on whoever is being
    timed.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def synchronizer(device: str) -> Callable[[], None]:
    """A call that waits until ``device`` has done all its work; it does nothing for the CPU."""
    kind = torch.device(device).type
    if kind == "cpu":
        return lambda: None
    return getattr(torch, kind).synchronize


def once(task: Task, synchronize: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of one call. The result is freed after the clock has stopped."""
    task.prepare()
    synchronize()
    start = clock()
    result = task.call()
    synchronize()
    seconds = clock() - start
    del result
    return seconds


def interleave(
    tasks: Mapping[str, Task],
    seconds: float,
    *,
    device: str = "cpu",
    min_reps: int = MIN_REPS,
    max_reps: int = MAX_REPS,
    clock: Callable[[], float] = time.perf_counter,
    measure: Callable[[Task], float] | None = None,
) -> dict[str, list[float]]:
    """Times of every task in seconds, one per round: A B, B A, A B, … until ``seconds`` are spent.

    At least ``min_reps`` rounds are made whatever they cost, at most ``max_reps``. Element k of
    every list is of round k. ``measure``: gives the seconds of a task in place of `once`; the
    warm-up is then left to the caller.
    """
    synchronize = synchronizer(device)
    warm_up = measure is None
    measure = measure or (lambda task: once(task, synchronize, clock))
    times: dict[str, list[float]] = {name: [] for name in tasks}
    with collector_off():
        for task in tasks.values() if warm_up else ():
            warm_until = clock() + WARM_UP_SECONDS
            measure(task)
            while clock() < warm_until:
                measure(task)
        order = list(tasks)
        stop = clock() + seconds
        for rounds in range(max_reps):
            if rounds >= min_reps and clock() >= stop:
                break
            for name in order:
                times[name].append(measure(tasks[name]))
            order.reverse()
    return times


def spread(times: Sequence[float]) -> dict[str, float | int]:
    """What a results file keeps of a list of times: count, and min, quartiles and max in
    seconds.
    """
    low, q25, median, q75, high = (float(value) for value in np.quantile(times, (0, 0.25, 0.5, 0.75, 1)))
    return {
        "samples": len(times),
        "min_s": low,
        "q25_s": q25,
        "median_s": median,
        "q75_s": q75,
        "max_s": high,
    }


def paired_ratio(base: Sequence[float], other: Sequence[float], resamples: int = 1000) -> dict[str, float]:
    """How many times faster ``other`` is than ``base``, both lists paired by round.

    ``ratio``: median of the ratios of each round, which a disturbance that lasts for a round leaves
    alone. ``low``, ``high``: its 95 % bootstrap interval (percentile method, fixed seed); with five
    rounds it is little less than their range.
    """
    if len(base) != len(other) or not base:
        raise ValueError(f"times: got {len(base)} and {len(other)} of them, expected two equal lists, not empty")
    ratios = np.asarray(base) / np.asarray(other)
    picks = np.random.default_rng(0).integers(0, len(ratios), (resamples, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
    return {
        "ratio": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
    }


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean log; ValueError for an empty list or a value that is not positive."""
    if not values or min(values) <= 0:
        raise ValueError(f"values: got {list(values)}, expected at least one, all positive")
    return math.exp(math.fsum(map(math.log, values)) / len(values))
