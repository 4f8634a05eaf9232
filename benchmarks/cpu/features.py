"""What features cost: ``python -m benchmarks.cpu.features`` (``resets``, ``checkpoints``,
``cells``, ``int8``).

resets: a training step of an LSTM with episodes that end inside the sequence, as a policy's: one
call with reset_mask, beside loops over nn.LSTM and nn.LSTMCell, and beside splitting the sequences
at their resets into rows of their own, padded, for one call of nn.LSTM.

checkpoints: a training step with checkpoint_every=True beside the same without: time, and the
growth of a fresh process's resident set (memory.py). The input needs no gradient, as data does not.

cells: a training step of a loop over FastLSTMCell, and over FastLSTM.step, beside the same loop
over nn.LSTMCell, and over nn.LSTM called with one step.

int8: a call without a gradient with weight_dtype=torch.int8, and with weight_only=True too, beside
the same in float32: time, bytes of the weights, error of the output.

Times are the process's CPU time with one thread, interleaved, to reduce the influence of other
processes; each contender's results are first compared with the others'.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.common.machine import RESULTS, ROOT, describe, load_average
from benchmarks.common.timing import Task, interleave, paired_ratio, spread, torch_threads
from benchmarks.cpu import int8_features
from benchmarks.cpu.memory import CLEAR_REFS, resident_kib
from fastlstm import FastLSTM, FastLSTMCell

RESET_SHAPES = [(128, 16, 128), (128, 64, 256)]  # T, N, H = I
RESET_SHARE = 0.03
# T, N, H, L
CHECKPOINT_SHAPES = [(4096, 16, 128, 1), (4096, 16, 128, 4), (4096, 16, 256, 2), (4096, 1, 128, 1)]
# T, N, I, H
CELL_SHAPES = [(8, N, H, H) for H in (64, 256, 512) for N in (1, 4, 8, 16, 64)]
CELL_SHAPES += [(8, N, I, 1024) for N in (1, 8, 64) for I in (1024, 1536)]
FEW = 513  # steps, of which two states are saved for any number of rows


def loop_over_steps(lstm: nn.LSTM, x, resets):
    """h and c masked before every step, and a step by torch's cell."""
    h = c = x.new_zeros(x.shape[1], lstm.hidden_size)
    outputs, keep = [], (~resets).to(x.dtype).unsqueeze(-1)
    for x_t, keep_t in zip(x, keep, strict=True):
        h, c = torch.lstm_cell(x_t, (h * keep_t, c * keep_t), *lstm.all_weights[0])
        outputs.append(h)
    return torch.stack(outputs)


def loop_over_calls(lstm: nn.LSTM, x, resets):
    """As policies with an nn.LSTM do: one call for each step."""
    h = c = x.new_zeros(1, x.shape[1], lstm.hidden_size)
    outputs, keep = [], (~resets).to(x.dtype).unsqueeze(-1)
    for x_t, keep_t in zip(x, keep, strict=True):
        y, (h, c) = lstm(x_t.unsqueeze(0), (h * keep_t, c * keep_t))
        outputs.append(y)
    return torch.cat(outputs)


def split_and_pad(lstm: nn.LSTM, x, resets):
    """Each episode a row of its own, all padded to the longest."""
    T, N, _ = x.shape
    starts = resets.clone()
    starts[0] = True
    begin = starts.t().flatten().nonzero().flatten()  # row after row
    ends = torch.cat([begin[1:], torch.tensor([T * N])])
    rows = x.transpose(0, 1).flatten(0, 1)
    lengths = (ends - begin).tolist()
    output, _ = lstm(pad_sequence(rows.split(lengths)))
    exists = torch.arange(output.shape[0]) < torch.tensor(lengths)[:, None]
    return output.transpose(0, 1)[exists].view(N, T, -1).transpose(0, 1)


def resets(seconds: float) -> list[dict]:
    rows = []
    for T, N, H in RESET_SHAPES:
        torch.manual_seed(0)
        lstm = nn.LSTM(H, H)
        fast = FastLSTM.from_torch(lstm)
        x, weight = torch.randn(T, N, H), torch.randn(T, N, H)
        mask = torch.rand(T, N) < RESET_SHARE
        ways = {
            "loop over nn.LSTM": (lstm, lambda x, m=mask, n=lstm: loop_over_calls(n, x, m)),
            "loop over nn.LSTMCell": (lstm, lambda x, m=mask, n=lstm: loop_over_steps(n, x, m)),
            "split and pad, nn.LSTM": (lstm, lambda x, m=mask, n=lstm: split_and_pad(n, x, m)),
            "FastLSTM(reset_mask)": (fast, lambda x, m=mask, n=fast: n(x, reset_mask=m)[0]),
        }
        tasks, found = {}, []
        for name, (module, call) in ways.items():

            def step(call=call, module=module, x=x, weight=weight):
                y = call(x)
                return y.detach(), torch.autograd.grad(y, list(module.parameters()), weight)

            found.append(step())
            tasks[name] = Task(step)
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-3)
        times = interleave(tasks, seconds, min_reps=7, clock=time.process_time)
        *others, ours = times
        for name in others:
            row = {"T": T, "N": N, "H": H, "other": name, **paired_ratio(times[name], times[ours])}
            rows.append(row | {"ours": spread(times[ours]), "theirs": spread(times[name])})
            print(f"T{T} N{N} H{H}: {name} takes {row['ratio']:.1f} times as long")
    return rows


def module_and_data(T, N, H, L, every):
    torch.manual_seed(0)
    return FastLSTM(H, H, L, checkpoint_every=every), torch.randn(T, N, H), torch.randn(T, N, H)


def training_step(module, x, weight):
    y = module(x)[0]
    return torch.autograd.grad(y, list(module.parameters()), weight)


def growth(T, N, H, L, every) -> int:
    """Bytes by which a training step makes this process grow (memory.py). Once per process."""
    module, x, weight = module_and_data(T, N, H, L, every)
    training_step(module, x[:FEW].contiguous(), weight[:FEW].contiguous())
    CLEAR_REFS.write_text("5")
    before = resident_kib("VmRSS")
    training_step(module, x, weight)
    return (resident_kib("VmHWM") - before) * 1024


def checkpoints(seconds: float) -> list[dict]:
    rows = []
    for shape in CHECKPOINT_SHAPES:
        grown = {}
        for every in (None, True):
            command = [sys.executable, "-m", "benchmarks.cpu.features", "--grow", json.dumps(shape)]
            command += ["--checkpoints"] * bool(every)
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            grown[every] = int(done.stdout.split()[-1])
        kept, x, weight = module_and_data(*shape, True)
        plain = module_and_data(*shape, None)[0]
        a, b = training_step(kept, x, weight), training_step(plain, x, weight)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        tasks = {
            name: Task(lambda m=m, x=x, w=weight: training_step(m, x, w))
            for name, m in (("kept", kept), ("plain", plain))
        }
        times = interleave(tasks, seconds, min_reps=3, clock=time.process_time)
        row = dict(zip("TNHL", shape, strict=True))
        row |= {"bytes_without": grown[None], "bytes_with": grown[True]}
        row |= {"memory_ratio": grown[None] / grown[True]}
        row |= {"time": paired_ratio(times["kept"], times["plain"])}
        row |= {"with": spread(times["kept"]), "without": spread(times["plain"])}
        rows.append(row)
        print(f"{row['memory_ratio']:.1f} times less memory, {row['time']['ratio']:.2f} the time")
    return rows


def loop_over(call, xs):
    outputs, state = [], None
    for x in xs:
        y, state = call(x, state)
        outputs.append(y)
    return outputs


def by_cell(cell):
    def call(x, state):
        state = cell(x, state)
        return state[0], state

    return call


def by_call(lstm):
    def call(x, state):
        y, state = lstm(x.unsqueeze(0), state)
        return y.squeeze(0), state

    return call


def cells(seconds: float) -> list[dict]:
    rows = []
    for T, N, I, H in CELL_SHAPES:
        torch.manual_seed(0)
        xs = [torch.randn(N, I, requires_grad=True) for _ in range(T)]
        weights = [torch.randn(N, H) for _ in range(T)]
        cell, lstm = nn.LSTMCell(I, H), nn.LSTM(I, H)
        fast_cell, fast = FastLSTMCell.from_torch(cell), FastLSTM.from_torch(lstm)
        pairs = {
            "FastLSTMCell": ((fast_cell, by_cell(fast_cell)), (cell, by_cell(cell))),
            "FastLSTM.step": ((fast, fast.step), (lstm, by_call(lstm))),
        }
        for name, sides in pairs.items():
            tasks, found = {}, []
            for side, (module, call) in zip(("ours", "theirs"), sides, strict=True):

                def step(call=call, module=module, xs=xs, weights=weights):
                    outputs = loop_over(call, xs)
                    return torch.autograd.grad(outputs, [*module.parameters(), *xs], weights)

                found.append(step())
                tasks[side] = Task(step)
            torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
            del found
            times = interleave(tasks, seconds, min_reps=5, clock=time.process_time)
            row = {"T": T, "N": N, "I": I, "H": H, "what": name}
            row |= paired_ratio(times["theirs"], times["ours"])
            rows.append(row | {side: spread(times[side]) for side in times})
            print(f"{name} T{T} N{N} I{I} H{H}: {row['ratio']:.2f}")
    return rows


def report(data: dict) -> str:
    machine = data["machine"]
    lines = [
        f"{machine['cpu']}, torch {machine['torch']}, commit {machine['commit']}, {data['date']}; "
        "1 thread, float32, training steps (int8: calls), CPU time; "
        f"load average {data['load']} at the start\n"
    ]
    if data["resets"]:
        lines.append(f"**reset_mask**, {RESET_SHARE:.0%} resets: how many times as long the others take\n")
        lines += ["| T,N,H | beside | ratio | 95 % interval |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {r['T']},{r['N']},{r['H']} | {r['other']} | {r['ratio']:.1f} | {r['low']:.1f}-{r['high']:.1f} |"
            for r in data["resets"]
        ]
    if data["checkpoints"]:
        lines.append("\n**checkpoint_every=True** beside none: growth of a fresh process, time\n")
        lines += ["| T,N,H,L | MiB without | MiB with | less by | time ratio | 95 % interval |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        lines += [
            f"| {r['T']},{r['N']},{r['H']},{r['L']} | {r['bytes_without'] / 2**20:.0f} | "
            f"{r['bytes_with'] / 2**20:.0f} | {r['memory_ratio']:.1f} | {r['time']['ratio']:.2f} | "
            f"{r['time']['low']:.2f}-{r['time']['high']:.2f} |"
            for r in data["checkpoints"]
        ]
    if data["cells"]:
        lines.append("\n**Loops over cells and steps** beside torch's: how many times as fast\n")
        lines += ["| T,N,I,H | what | ratio | 95 % interval |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {r['T']},{r['N']},{r['I']},{r['H']} | {r['what']} | {r['ratio']:.2f} | {r['low']:.2f}-{r['high']:.2f} |"
            for r in data["cells"]
        ]
    lines += int8_features.lines(data["int8"])
    return "\n".join(lines) + "\n"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", help="resets, checkpoints, cells, int8 (all)")
    parser.add_argument("--seconds", type=float, default=5, help="of each comparison (5)")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and .md")
    parser.add_argument("--grow", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoints", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    with torch_threads(1):
        if args.grow:
            print(growth(*args.grow, args.checkpoints or None))
            return 0
        parts = {
            "resets": resets,
            "checkpoints": checkpoints,
            "cells": cells,
            "int8": int8_features.rows,
        }
        for name in args.parts:
            if name not in parts:
                parser.error(f"no part is called {name!r}; choose from {', '.join(parts)}")
        machine = describe()
        data = {"machine": machine, "date": time.strftime("%Y-%m-%d")}
        data["load"] = load_average()
        for name, run in parts.items():
            data[name] = run(args.seconds) if not args.parts or name in args.parts else []
    text = report(data)
    print(text)
    if args.save:
        for suffix, body in ((".json", json.dumps(data, indent=1) + "\n"), (".md", text)):
            (RESULTS / f"{args.save}{suffix}").write_text(body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
