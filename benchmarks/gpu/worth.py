"""What the wavefront and the projected families gain, by the model: ``./run gpu predict families``.

Of the wavefront: a stack of layers in chunks of steps (fastlstm/stack/wavefront/plan.py) over the
same layers one after the other, each layer's step as csrc/cuda predicts it. Of the projected
families: a step by them over one by the step kernels, which take any projection. benchmarks/log.md
has the tables.
"""

from __future__ import annotations

import math
import os
from unittest import mock

from benchmarks.common.timing import geometric_mean
from benchmarks.gpu import predict
from benchmarks.gpu.floor import CLOCKS_PER_US, MULTIPROCESSORS

STEPS = 512
LAYERS = (2, 3, 4, 6)
ROWS = (1, 4, 16, 64)
UNITS = (128, 256, 512, 768, 1024)
WORTH = 1.3
VARIABLE = "FASTLSTM_CUDA_KERNELS"


def choice(family, N: int, H: int, P: int | None, backward: bool, only: str = "auto"):
    """What csrc/cuda chooses in bfloat16 on a simulated H200, among some of its families."""
    with mock.patch.dict(os.environ, {VARIABLE: only}), family.simulated(**predict.H200):
        return family.choose("bfloat16", STEPS, N, H, P, backward=backward)


def wavefront_gain(family, L: int, N: int, H: int, backward: bool, captured: bool) -> float | None:
    """Time of L layers in turn over their time as a wavefront; None where they do not run so: the
    kernels need the whole GPU, two layers do not fit beside each other, or two chunks into T, or
    the plan, which does not know the kernel's step, expects too little."""
    from fastlstm.stack.wavefront import plan

    found = choice(family, N, H, None, backward)
    step, once = found.step / CLOCKS_PER_US, found.once / CLOCKS_PER_US
    blocks = math.ceil(N / 8) * (1 if H <= 64 else math.ceil(H / 32))
    if found.family != "cluster" or 2 * blocks > MULTIPROCESSORS:
        return None
    host = 0.0 if captured else plan.HOST_CHUNK
    chunk = plan.best_chunk(STEPS, L, plan.STEP, host)
    if 2 * chunk > STEPS or plan.gain(STEPS, L, chunk, plan.STEP, host) < plan.WORTH:
        return None
    chunks = math.ceil(STEPS / chunk)
    chunk = math.ceil(STEPS / chunks)
    beside = min(L, MULTIPROCESSORS // blocks)  # layers that find room at once
    waves = max(chunks + L - 1, math.ceil(L * chunks / beside))
    in_turn = L * (STEPS * step + once)
    # A chunk loads the weights anew, and has a product and copies of its own.
    gpu = waves * (chunk * step + once + plan.CHUNK)
    return in_turn / max(gpu, L * chunks * host)


def projected_gain(family, N: int, H: int, P: int, backward: bool) -> tuple[float, str]:
    """Time of the step kernels over that of what is chosen, and which family that is."""
    found = choice(family, N, H, P, backward)
    steps = choice(family, N, H, P, backward, "step")

    def time_of(c) -> float:
        return c.once + c.step * STEPS

    return time_of(steps) / time_of(found), found.family


def text() -> str:
    """Both tables, and what they come to."""
    family = predict.simulated()
    lines = [f"bfloat16, T = {STEPS}; forward / backward.", ""]
    for captured in (False, True):
        title = "in a CUDA graph" if captured else "launched by the host"
        lines += [f"| wavefront, {title}: H | " + " | ".join(f"L{L} N{N}" for L in LAYERS for N in ROWS) + " |"]
        lines.append("|---" * (len(LAYERS) * len(ROWS) + 1) + "|")
        every = []
        for H in UNITS:
            cells = []
            for L in LAYERS:
                for N in ROWS:
                    both = [wavefront_gain(family, L, N, H, b, captured) for b in (False, True)]
                    every += both
                    cells.append("/".join("-" if g is None else f"{g:.1f}" for g in both))
            lines.append(f"| {H} | " + " | ".join(cells) + " |")
        lines += ["", verdict(f"Wavefront, {title}", every), ""]
    lines += ["| projected: H, P | " + " | ".join(f"N{N}" for N in ROWS) + " |"]
    lines.append("|---" * (len(ROWS) + 1) + "|")
    every = []
    for H in UNITS:
        for P in (H // 4, H // 2):
            cells = []
            for N in ROWS:
                both = [projected_gain(family, N, H, P, b) for b in (False, True)]
                every += [gain for gain, _ in both]
                cells.append(" / ".join(f"{gain:.1f}{name[0]}" for gain, name in both))
            lines.append(f"| {H}, {P} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", verdict("Projected families", every)])


def verdict(name: str, gains: list[float | None]) -> str:
    """What the gains come to; where there is none, nothing is gained."""
    there = [gain for gain in gains if gain is not None]
    if not there:
        return f"{name}: in none of {len(gains)} cases."
    worth = sum(gain >= WORTH for gain in there)
    return (
        f"{name}: in {len(there)} of {len(gains)} cases, there {geometric_mean(there):.2f} times as fast by "
        f"the geometric mean ({min(there):.2f} to {max(there):.2f}), at least {WORTH} in {worth}; "
        f"over all cases {geometric_mean([gain or 1.0 for gain in gains]):.2f}."
    )
