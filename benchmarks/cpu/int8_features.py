"""The part ``int8`` of features.py: calls without a gradient with int8 weights, with weight_only
too, beside the same in float32."""

from __future__ import annotations

import time

import torch
from torch import nn

from benchmarks.common.timing import Task, interleave, paired_ratio, spread
from fastlstm import FastLSTM

# T, N, I, H
INT8_SHAPES = [(1, 1, 256, 512), (50, 1, 40, 96), (200, 1, 64, 320), (100, 1, 512, 512)]
INT8_SHAPES += [(48, 8, 100, 200), (75, 48, 384, 384)]


def held(module: nn.Module) -> int:
    """Bytes of its parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()
def rows(seconds: float) -> list[dict]:
    found = []
    for T, N, I, H in INT8_SHAPES:
        torch.manual_seed(0)
        x, plain = torch.randn(T, N, I), FastLSTM(I, H)
        exact = FastLSTM.from_torch(plain).double()(x.double())[0]
        modules = {"float32": plain}
        for name, weight_only in (("int8", False), ("int8, weight_only", True)):
            options = {"weight_dtype": torch.int8, "weight_only": weight_only}
            modules[name] = FastLSTM.from_torch(plain, **options)
        tasks = {name: Task(lambda m=m, x=x: m(x)) for name, m in modules.items()}
        times = interleave(tasks, seconds, min_reps=5, clock=time.process_time)
        for name, module in list(modules.items())[1:]:
            row = {"T": T, "N": N, "I": I, "H": H, "what": name}
            row |= paired_ratio(times["float32"], times[name])
            row |= {"float32": spread(times["float32"]), "int8": spread(times[name])}
            row["bytes"] = held(module) / held(plain)
            row["error"] = float((module(x)[0] - exact).abs().max() / exact.abs().max())
            found.append(row)
            print(f"{name} T{T} N{N} I{I} H{H}: {row['ratio']:.2f}, error {row['error']:.1e}")
    return found


def lines(measured: list[dict]) -> list[str]:
    """The table in Markdown."""
    if not measured:
        return []
    return [
        "\n**int8 weights** beside float32, inference: how many times as fast\n",
        "| T,N,I,H | what | ratio | 95 % interval | bytes | error / largest output |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r['T']},{r['N']},{r['I']},{r['H']} | {r['what']} | {r['ratio']:.2f} | "
            f"{r['low']:.2f}-{r['high']:.2f} | {r['bytes']:.2f} | {r['error']:.1e} |"
            for r in measured
        ),
    ]
