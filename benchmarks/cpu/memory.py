"""Peak memory of one training step: how far the resident set of a fresh process grows.

Each measurement is a process of its own, ``python -m benchmarks.cpu.memory``, because allocators
keep freed memory. It builds the module and the inputs, runs a training step on a tiny problem
(which loads libraries and starts threads), resets the kernel's high-water mark (``5`` to
/proc/self/clear_refs), runs one training step and reads VmHWM: growth = VmHWM - resident size
before the step. So it counts saved activations, workspace, output and gradients, but not weights
and input. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.common.machine import ROOT
from benchmarks.common.shapes import Case

TARGET_RATIO = 1.1
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def memory_cases() -> list[Case]:
    return [
        Case(512, 64, 512, 512),
        Case(128, 64, 512, 512),
        Case(128, 64, 256, 256, D=2, variant="bidirectional"),
    ]


def unsupported() -> str | None:
    """Why memory cannot be measured here, or None."""
    if not STATUS.exists():
        return "memory is read from /proc/self/status, which only Linux has: run this part on Linux"
    return None


def resident_kib(field: str) -> int:
    """``VmRSS`` (resident now) or ``VmHWM`` (its highest since the last reset), in KiB."""
    return int(re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE).group(1))


def growth_bytes(peer: str, case: Case, dtype: str, threads: int) -> int:
    """Growth of this process by one training step of ``peer``; see the module's docstring. Call it
    once per process.
    """
    import torch

    from benchmarks.common.check import make_task
    from benchmarks.common.peers import PEERS, Problem

    torch.set_num_threads(threads)
    torch_dtype = getattr(torch, dtype)
    reason = PEERS[peer].reject(case, torch_dtype, "cpu")
    if reason:
        raise RuntimeError(reason)

    def step(of: Problem) -> None:
        task = make_task(PEERS[peer].build(of), of, "train")
        task.prepare()
        task.call()

    step(Problem.make(replace(case, T=2, N=1, I=16, H=16), torch_dtype))
    problem = Problem.make(case, torch_dtype)
    task = make_task(PEERS[peer].build(problem), problem, "train")
    task.prepare()
    CLEAR_REFS.write_text("5")
    before = resident_kib("VmRSS")
    result = task.call()
    peak = resident_kib("VmHWM")
    del result
    return (peak - before) * 1024


def in_fresh_process(peer: str, case: Case, dtype: str, threads: int, timeout: float = 300) -> int:
    """`growth_bytes` in a process of its own; RuntimeError with the last line of its error
    output.
    """
    request = json.dumps({"peer": peer, "case": asdict(case), "dtype": dtype, "threads": threads})
    command = [sys.executable, "-m", "benchmarks.cpu.memory", request]
    # Threads wait passively: on a busy machine spinning would take many times as long, with the
    # same memory.
    env = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"the process ended with status {done.returncode}")
    return int(done.stdout.strip().splitlines()[-1])


def run(
    cases: Sequence[Case], dtypes: Sequence[str], threads: int, candidate: str, repetitions: int = 1
) -> Iterator[dict[str, object]]:
    """A row per case and dtype: median growth in bytes of nn.LSTM and the candidate, and candidate
    / nn.LSTM as ``ratio``.
    """
    for dtype in dtypes:
        for case in cases:
            row = {
                **asdict(case),
                "dtype": dtype,
                "mode": "train",
                "threads": threads,
                "device": "cpu",
            }
            try:
                bytes_of = {
                    peer: statistics.median(in_fresh_process(peer, case, dtype, threads) for _ in range(repetitions))
                    for peer in ("nn.LSTM", candidate)
                }
                row |= {"growth_bytes": bytes_of, "samples": repetitions, "candidate": candidate}
                row |= {
                    "ratio": bytes_of[candidate] / bytes_of["nn.LSTM"],
                    "status": "ok",
                    "error": None,
                }
            except Exception as error:
                row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description="measure one training step in this process; prints bytes")
    parser.add_argument("request", help="JSON: peer, case, dtype, threads")
    request = json.loads(parser.parse_args().request)
    print(growth_bytes(request["peer"], Case(**request["case"]), request["dtype"], request["threads"]))


if __name__ == "__main__":
    main()
