"""What a call costs the host, in us: ``./run gpu host``.

On a GPU, calls are submitted and not waited for, FastLSTM beside nn.LSTM. Without one, FastLSTM's
calls run dry: the same Python and C++ on CPU tensors, with launches that tests/simt checks and does
not run, and torch's small products on the CPU in the place of cuBLAS's launches. Dry numbers leave
out what a launch itself takes (about 2 us each), and are for comparison among themselves.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.common import stand_ins
from benchmarks.common.machine import ROOT
from benchmarks.common.timing import collector_off

PART = "host"
WIDTH = 16  # I and H: what is computed is to be next to nothing
STEPS = (1, 4, 16)
# us a call that one and three layers of one direction are to stay under: inference, with backward.
TARGETS = {(1, False): 40.0, (1, True): 140.0, (3, False): 90.0, (3, True): 300.0}
ROUNDS, CALLS = 25, 12
ROW = "| {:<34} | {:>8} | {:>8} | {:>6} |"


def shapes() -> Iterator[tuple[str, int, int, int, bool]]:
    """(name, layers, directions, T, with gradients); T = 0 is one `step()` of one row."""
    for L in (1, 3):
        for D in (1, 2):
            for backward in (False, True):
                for T in STEPS:
                    what = "with backward" if backward else "inference"
                    yield f"{L} layers, {D} directions, T {T}, {what}", L, D, T, backward
    for L in (1, 3):
        yield f"{L} layers, step()", L, 1, 0, False


def expected_seconds() -> float:
    """Of both contenders, a third of a millisecond a call and layer."""
    calls = (ROUNDS + 1) * CALLS
    return sum(2 * calls * L * 0.00035 for _, L, _, _, _ in shapes())


def call_of(module, device: str, T: int, backward: bool, dtype: torch.dtype) -> Callable[[], object]:
    """One call of a module on one row."""
    if T == 0:
        x = torch.randn(1, WIDTH, device=device, dtype=dtype)
        stepped = module.step if hasattr(module, "step") else None
        with torch.no_grad():
            state = module(x.unsqueeze(0))[1]

        def step():
            with torch.no_grad():
                return stepped(x, state) if stepped else module(x.unsqueeze(0), state)

        return step
    x = torch.randn(T, 1, WIDTH, device=device, dtype=dtype)
    if not backward:

        def infer():
            with torch.no_grad():
                return module(x)

        return infer
    x.requires_grad_()
    leaves = [x, *module.parameters()]
    dy = torch.randn_like(module(x)[0])
    return lambda: torch.autograd.grad(module(x)[0], leaves, dy)


def least_us(calls: dict[str, Callable], synchronize: Callable[[], None], rounds=ROUNDS) -> dict:
    """The least us of a call in any round, by name; the calls take turns."""
    found = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        for _ in range(3):
            call()
    with collector_off():
        for _ in range(rounds):
            for name, call in calls.items():
                synchronize()
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                found[name] = min(found[name], (time.perf_counter() - start) / CALLS * 1e6)
    synchronize()
    return found


def measure(device: str, synchronize: Callable[[], None], rounds=ROUNDS) -> Iterator[dict]:
    """A row for each shape: ``shape``, ``fast_us``, on a GPU ``torch_us``, ``target_us``."""
    from fastlstm import FastLSTM

    dtype = torch.bfloat16
    for name, L, D, T, backward in shapes():
        options = {"num_layers": L, "bidirectional": D == 2, "dtype": dtype}
        fast = FastLSTM(WIDTH, WIDTH, backend="cuda", **options).to(device)
        calls = {"fast_us": call_of(fast, device, T, backward, dtype)}
        if device == "cuda":
            plain = torch.nn.LSTM(WIDTH, WIDTH, **options).to(device)
            calls["torch_us"] = call_of(plain, device, T, backward, dtype)
        row = {"shape": name, **least_us(calls, synchronize, rounds)}
        target = TARGETS.get((L, backward)) if D == 1 else None
        yield row if target is None else row | {"target_us": target}


@contextlib.contextmanager
def launches_dry() -> Iterator[None]:
    """The backend "cuda" on CPU tensors, whose launches are checked and not run."""
    sys.path.insert(0, str(ROOT / "tests" / "simt"))
    families = stand_ins.fake_backends()
    if families["cuda"] != "simt":
        raise RuntimeError("the CUDA sources cannot be compiled here (see above)")
    family = importlib.import_module("family")
    torch.set_num_threads(1)
    with family.simulated(dry=1):
        yield


def line(row: dict) -> str:
    values = [row["shape"], f"{row['fast_us']:.0f}"]
    values.append(f"{row['torch_us']:.0f}" if "torch_us" in row else "-")
    return ROW.format(*values, f"{row['target_us']:.0f}" if "target_us" in row else "-")


def heading() -> list[str]:
    return [ROW.format("us a call on the host, the least", "FastLSTM", "nn.LSTM", "target")]


def run(device, journal) -> int:
    """A part of a run: each row into the journal; gives how many were left out, none."""
    with launches_dry() if device.dry else contextlib.nullcontext():
        for row in measure(device.name, device.synchronize, 1 if device.dry else ROUNDS):
            journal.append("host", f"{PART}/{row['shape']}", **row)
            print(line(row), flush=True)
    return 0


def dry() -> None:
    """``./run gpu host`` without a GPU."""
    os.environ.setdefault("FASTLSTM_POISON", "0")
    print("dry: no GPU, and nothing of a launch; for comparison among themselves")
    print(*heading(), sep="\n")
    with launches_dry():
        for row in measure("cpu", lambda: None):
            print(line(row), flush=True)
