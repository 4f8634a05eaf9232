"""Runs a runner of tests/simt: writes its problem, reads what it made of the arrays."""

import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

CODES = {0: "ok", 1: "error", 70: "deadlock", 71: "divergence", 72: "memory", 73: "misuse"}
CODES[75] = "sanitizer"


@dataclass
class Outcome:
    """How a run ended, as a word of CODES; what it said; the arrays afterwards, if it was ok."""

    code: str
    report: str
    arrays: dict


def item(name, value):
    """The file's form of an integer or a tensor; see problem.cpp."""
    head = struct.pack("<q", len(name)) + name.encode()
    if isinstance(value, int):
        return head + struct.pack("<qq", -1, value)
    data = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return head + struct.pack("<q", len(data)) + data


def read_arrays(data, like):
    arrays, at = {}, 0
    for name in sorted(like):
        tensor = like[name]
        size = tensor.numel() * tensor.element_size()
        part = torch.frombuffer(bytearray(data[at : at + size]), dtype=tensor.dtype) if size else []
        arrays[name] = part.view(tensor.shape) if size else torch.empty_like(tensor)
        at += size
    return arrays


def run(runner, entry, values, seed=0, timeout=240):
    """Run an entry over `values`: tensors, integers, and None for what is left out."""
    values = {name: value for name, value in values.items() if value is not None}
    items = [item(name, int(v) if isinstance(v, bool) else v) for name, v in values.items()]
    with tempfile.TemporaryDirectory() as folder:
        problem, results = Path(folder, "problem"), Path(folder, "results")
        problem.write_bytes(struct.pack("<q", len(items)) + b"".join(items))
        done = subprocess.run(
            [runner, problem, results, entry, str(seed)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        tensors = {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}
        arrays = read_arrays(results.read_bytes(), tensors) if done.returncode == 0 else {}
    return Outcome(CODES.get(done.returncode, f"exit code {done.returncode}"), done.stderr, arrays)
