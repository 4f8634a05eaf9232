"""Which kernels run, and for how long, by torch's profiler: in a process of its own, because what
is profiled once may be slower for the rest of its life.

A few shapes with every contender, for the next step's plan; then one call of nn.LSTM for every N
and H of the grid and every edge shape, for the names of the kernels that cuDNN chose.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import torch

from benchmarks.common import stand_ins
from benchmarks.common.precision import PRECISIONS, fp32_precision
from benchmarks.common.shapes import MODES, Case
from benchmarks.gpu.cells import GRID_H, GRID_N, GRID_T, GpuCell, edge_cases
from benchmarks.gpu.contenders import contenders_of
from benchmarks.gpu.device import Call, Device, first_line
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.measure import Bench

PART = "profile"
CLOSE_LOOKS = [(512, 1, 256), (512, 16, 512), (512, 64, 256), (512, 64, 1024)]
KEPT_KERNELS = 8
NAME_LENGTH = 140


def looks() -> Iterator[tuple[GpuCell, str]]:
    """(cell, contender) in order of worth."""
    for precision in ("bf16", "fp32"):
        for T, N, H in CLOSE_LOOKS:
            cell = GpuCell(Case(T, N, H, H), precision, "train")
            for contender in contenders_of(cell)[:3]:
                yield cell, contender.name
    for precision in PRECISIONS:
        grid = [Case(GRID_T[0], N, H, H) for H in GRID_H for N in GRID_N]
        for case in [*grid, *edge_cases()]:
            for mode in MODES:
                cell = GpuCell(case, precision, mode)
                yield cell, contenders_of(cell)[0].name


def run(device: Device, journal: Journal, stop: float, most: int | None) -> int:
    """Take the looks that are not in the journal; gives how many were left out."""
    seen = {**journal.latest("profile"), **journal.latest("broken")}
    left = 0
    for index, (cell, name) in enumerate(looks()):
        key = f"{cell.key(PART)}/{name}"
        if key in seen or (most is not None and index >= most):
            continue
        if time.time() > stop:
            left += 1
            continue
        journal.mark(key, name)
        journal.append("profile", key, part=PART, **look(device, cell, name))
    return left


def look(device: Device, cell: GpuCell, name: str) -> dict[str, object]:
    """The kernels of one call, or why there are none."""
    case = stand_ins.shrink(cell.case) if device.dry else cell.case
    found = {"case": case.label, "dtype": cell.precision, "mode": cell.mode, "contender": name}
    try:
        with fp32_precision(PRECISIONS[cell.precision][1]):
            bench = Bench(device, cell, case, checked=False)
            contender = next(c for c in bench.contenders if c.name == name)
            refused = contender.peer.reject(case, bench.problem.dtype, device.name)
            if refused:
                return {**found, "kernels": [], "note": f"refused: {refused}"}
            return {**found, "kernels": kernels_of(device, bench.call(contender, cell.mode))}
    except Exception as error:
        return {**found, "kernels": [], "note": f"{type(error).__name__}: {first_line(error)}"}


def kernels_of(device: Device, call: Call) -> list[dict[str, object]]:
    """Kernels of one call, the longest first: ``name``, ``count``, ``us`` of all of them."""
    for _ in range(2):
        call(0)
    device.synchronize()
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU] if device.dry else [activity.CPU, activity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        call(0)
        device.synchronize()
    found = []
    for event in profiler.key_averages():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        time_us = event.self_cpu_time_total if device.dry else event.self_device_time_total
        if (on_device or device.dry) and time_us > 0:
            name = shorten(event.key)
            found.append({"name": name, "count": event.count, "us": round(time_us, 1)})
    found.sort(key=lambda kernel: -kernel["us"])
    rest = found[KEPT_KERNELS:]
    if rest:
        total = round(sum(k["us"] for k in rest), 1)
        count = sum(k["count"] for k in rest)
        found[KEPT_KERNELS:] = [{"name": f"{len(rest)} others", "count": count, "us": total}]
    return found


def shorten(name: str) -> str:
    """A kernel's name without its argument list, and without most of its template arguments."""
    name = re.sub(r"\(anonymous namespace\)::", "", name).removeprefix("void ")
    return name.split("(")[0][:NAME_LENGTH]
