"""Each family of kernels by force at the borders of the choice: us a step measured, beside what
csrc/cuda/costs.h predicts. Where the order of two differs, costs.h is to be changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from unittest import mock

import torch

from benchmarks.gpu.device import Device, first_line
from benchmarks.gpu.floor import CLOCKS_PER_US
from benchmarks.gpu.journal import Journal

PART = "families"
STEPS = 512
NAMES = ("cluster", "grid", "step")
# N, H: on both sides of where the choice changes, in bfloat16 (tests/cuda/test_cuda_choice.py).
BORDERS = (
    (16, 512), (16, 768), (1, 512), (1, 768), (64, 256), (64, 512), (64, 1024), (16, 1024),
    (256, 256), (256, 512), (16, 1536), (1, 2048),
)  # fmt: skip
SAMPLES = 5
VARIABLE = "FASTLSTM_CUDA_KERNELS"


def calls() -> Iterator[tuple[int, int, bool, str]]:
    """(N, H, backward, family)."""
    for N, H in BORDERS:
        for backward in (False, True):
            for name in NAMES:
                yield N, H, backward, name


def key_of(N: int, H: int, backward: bool, name: str) -> str:
    return f"{PART}/N{N}-H{H}-{'backward' if backward else 'forward'}/{name}"


def expected_seconds() -> float:
    return 0.35 * sum(1 for _ in calls())


def run(device: Device, journal: Journal, stop: float, most: int | None) -> int:
    """Measure what is not in the journal; gives how many were left out for want of time."""
    done, left = journal.latest("forced"), 0
    right = os.environ.get(VARIABLE, "").split() or NAMES
    with mock.patch.dict(os.environ):
        for index, (N, H, backward, name) in enumerate(calls()):
            key = key_of(N, H, backward, name)
            if key in done or (most is not None and index >= most):
                continue
            if time.time() > stop:
                left += 1
                continue
            if name not in right:
                continue  # what was wrong among the verdicts
            os.environ[VARIABLE] = name
            journal.mark(key, name)
            row = {"N": N, "H": H, "backward": backward, "family": name}
            journal.append("forced", key, **row, **measure(device, N, H, backward, name))
    return left


def measure(device: Device, N: int, H: int, backward: bool, name: str) -> dict:
    """``predicted_us`` and ``us`` of a step; or ``note``, where it cannot be."""
    prefix, T = ("simt_kernels", 2) if device.dry else ("cuda_kernels", STEPS)
    H = min(H, 48) if device.dry else H
    ops, dtype = torch.ops.fastlstm, torch.bfloat16
    choice = getattr(ops, f"{prefix}_choice")([0, 2, 0, T, N, 1, H, H, 0], backward)
    if choice[0] != NAMES.index(name):
        return {"note": "not possible"}

    def made(*shape):
        return torch.randn(*shape, device=device.name, dtype=dtype)

    gates, states = made(T, N, 1, 4 * H), [made(1, N, H), made(1, N, H)]
    weight = made(1, 4 * H, H) * H**-0.5
    forward, back = (getattr(ops, f"{prefix}_{w}") for w in ("forward", "backward"))
    given = (*states, weight, None)

    def forwards(_):
        return forward(gates, *given, None, None, backward, backward, False)

    try:
        results = forwards(0)
        call = forwards
        if backward:
            dy, tape = made(T, N, H), results[3:]

            def call(_):
                return back(dy, *[None] * 4, *given, *tape, None, None, False, False)

        call(0)
        count = 1 if device.dry else 3
        seconds = min(device.sample(call, count) for _ in range(1 if device.dry else SAMPLES))
    except RuntimeError as error:
        return {"note": first_line(error)}
    # The choice's clocks are of a step, and once for the call.
    clocks = choice[1] + choice[2] / T
    return {"us": seconds / T * 1e6, "predicted_us": clocks / CLOCKS_PER_US, "shape": choice[3]}
