"""Is each family of kernels right at all? Small calls of every family, dtype, direction and pass
beside a float64 oracle on the same device, in a minute: ``python -m benchmarks.gpu.verdicts``.

One process forks another for each group (a family in one dtype), several at a
time. A group that says nothing for ten seconds is killed, and of its family nothing more is begun.
What a family got wrong, or did not survive, is not chosen in the rest of the run.

The oracle is fastlstm's reference in float64, the budget that of verify.py, with the reference in
the precision under test, its factors rounded as tensor cores round them, as the baseline.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field

from benchmarks.common import stand_ins
from benchmarks.gpu.journal import Journal

PART = "verdicts"
# Of silence. In a dry run kernels may be compiled first, on a machine that others may keep busy.
STALL_SECONDS, DRY_STALL_SECONDS = 10.0, 200.0
PROCESSES = 10
KINDS = ("bf16", "fp16", "tf32", "fp32", "fp64")
PASSES = ("inference", "tape", "backward")
RESULTS = ("output", "h_n", "c_n")
# H and P (0: none) of each family's calls, and what FASTLSTM_CUDA_KERNELS says for it.
FAMILIES = {
    "step": (75, 0, "step"),
    "cluster": (96, 0, "cluster"),
    "grid": (700, 0, "grid"),
    "step, projected": (75, 70, "step"),
    "cluster, projected": (96, 40, "cluster"),
    "grid, projected": (700, 200, "grid"),
    "stack": (24, 0, "auto"),  # the pair of ops of a whole module
}
# Clusters of two, three and sixteen blocks.
CLUSTER_H = (48, 96, 512)
STEPS, ROWS = (6, 40), (1, 9, 17)
DRY_STEPS, DRY_ROWS, DRY_H = (2,), (1, 9), 40
ORDER = {"cluster": 0, "grid": 1, "step": 2}  # numbers of csrc's enum Family


@dataclass(frozen=True)
class Item:
    """One call: what it is made of."""

    family: str
    kind: str
    T: int
    N: int
    D: int
    H: int
    P: int

    @property
    def key(self) -> str:
        return f"{PART}/{self.family}/{self.kind}/T{self.T}-N{self.N}-D{self.D}-H{self.H}"


def groups(dry: bool) -> list[tuple[str, str]]:
    """(family, kind), those first that a run is about."""
    families = list(FAMILIES)
    pairs = [(family, kind) for kind in KINDS for family in families]
    # float64 has the step kernels alone.
    pairs = [(f, k) for f, k in pairs if k != "fp64" or f.startswith(("step", "stack"))]
    return [(f, k) for f, k in pairs if k in ("bf16", "fp64")] if dry else pairs


def items(family: str, kind: str, dry: bool) -> list[Item]:
    H, P, _ = FAMILIES[family]
    widths = CLUSTER_H if family == "cluster" else (H,)
    if dry:
        widths, P = (min(DRY_H, H),), min(P, 12)
    steps, rows = (DRY_STEPS, DRY_ROWS) if dry else (STEPS, ROWS)
    return [Item(family, kind, T, N, D, width, P) for width in widths for T in steps for N in rows for D in (1, 2)]


def expected_seconds() -> float:
    """Of all groups: a process takes a few seconds to open the GPU, a call some small kernels for
    each step of two references."""
    pairs = groups(False)
    calls = sum(0.004 * item.T * item.D for pair in pairs for item in items(*pair, False))
    return (4.0 * len(pairs) + calls) / PROCESSES + 4.0


def judge(item: Item, device: str) -> dict[str, str]:
    """What each pass came to: ``ok``, or a sentence; ``not possible`` where another family would
    run in its place."""
    import torch

    from benchmarks.common.precision import PRECISIONS, fp32_precision

    os.environ["FASTLSTM_CUDA_KERNELS"] = FAMILIES[item.family][2]
    dtype, mode, roundoff = (torch.float64, "ieee", 2.0**-53) if item.kind == "fp64" else PRECISIONS[item.kind]
    torch.manual_seed(len(item.key))
    with fp32_precision(mode):
        if item.family == "stack":
            return judge_stack(item, device, dtype, roundoff)
        return judge_recurrence(item, device, dtype, mode == "tf32", roundoff)


def judge_recurrence(item: Item, device, dtype, tf32: bool, roundoff: float) -> dict[str, str]:
    import torch

    from benchmarks.gpu.verify import rounded_products
    from fastlstm.reference.backward import lstm_backward
    from fastlstm.reference.lstm import lstm_forward

    prefix = "cuda_kernels" if device == "cuda" else "simt_kernels"
    ops = torch.ops.fastlstm
    T, N, D, H, outputs = item.T, item.N, item.D, item.H, item.P or item.H
    wanted = FAMILIES[item.family][2]
    for backward in (False, True):
        code = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}[dtype]
        call = [0, code, tf32, T, N, D, H, outputs, item.P > 0]
        choice = getattr(ops, f"{prefix}_choice")([int(c) for c in call], backward)
        if choice[0] != ORDER[wanted]:
            return dict.fromkeys(PASSES, "not possible")

    def drawn(*shape, scale=1.0):
        return (scale * torch.randn(*shape)).to(dtype).to(device)

    given = [drawn(T, N, D, 4 * H), drawn(D, N, outputs), drawn(D, N, H)]
    given.append(drawn(D, 4 * H, outputs, scale=outputs**-0.5))
    given.append(drawn(D, item.P, H, scale=H**-0.5) if item.P else None)
    masks = [None, None]
    if N == 17:
        masks = [torch.randint(0, T + 1, (N,)).to(device), (torch.rand(T, N) < 0.2).to(device)]
    arrived = [drawn(T, N, D * outputs), drawn(D, N, outputs), drawn(D, N, H)]

    def passes_of(run_forward, run_backward, dtype):
        cast = [t if t is None else t.to(dtype) for t in (*given, *arrived)]
        forward, grads = cast[:5], cast[5:]
        results = run_forward(*forward, *masks)
        back = run_backward(*grads, None, None, *forward[1:], *results[3:], *masks)
        return {
            **dict(zip(RESULTS, results, strict=False)),
            **dict(zip(("dgates", "dh0", "dc0"), back, strict=False)),
        }

    def by_reference(dtype):
        return passes_of(lstm_forward, lambda *a: lstm_backward(*a, False), dtype)

    oracle = by_reference(torch.float64)
    with rounded_products({torch.float64: "fp32"}.get(dtype, item.kind)):
        base = by_reference(dtype) if dtype != torch.float64 else oracle
    forward, backward = (getattr(ops, f"{prefix}_{w}") for w in ("forward", "backward"))
    plain = forward(*given, *masks, False, False, tf32)
    got = passes_of(lambda *a: forward(*a, True, True, tf32), lambda *a: backward(*a, False, tf32), dtype)
    return of_passes(dict(zip(RESULTS, plain, strict=False)), got, base, oracle, roundoff, max(4 * H, T))


def judge_stack(item: Item, device, dtype, roundoff: float) -> dict[str, str]:
    import torch

    from fastlstm import FastLSTM

    options = {"num_layers": 2, "bidirectional": item.D == 2, "proj_size": 7 * (item.N == 9)}
    model = FastLSTM(10, item.H, backend="reference", dtype=dtype, **options).to(device)
    x = torch.randn(item.T, item.N, 10).to(dtype).to(device)
    masks = {}
    if item.N == 17:
        masks["lengths"] = torch.randint(0, item.T + 1, (item.N,)).to(device)
        masks["reset_mask"] = (torch.rand(item.T, item.N) < 0.2).to(device)

    def results(backend, dtype, gradients):
        module = FastLSTM(10, item.H, backend=backend, dtype=dtype, **options).to(device)
        module.load_state_dict(model.state_dict())
        with torch.set_grad_enabled(gradients):
            leaf = x.to(dtype).requires_grad_(gradients)
            output, states = module(leaf, **masks)
            found = {"output": output, "h_n": states[0], "c_n": states[1]}
            if gradients:
                leaves = {"d_x": leaf, **{f"d_{k}": p for k, p in module.named_parameters()}}
                loss = output.square().sum() + states[1].sum()
                grads = torch.autograd.grad(loss, list(leaves.values()))
                found |= dict(zip(leaves, grads, strict=True))
        return {k: v.detach() for k, v in found.items()}

    oracle = results("reference", torch.float64, True)
    base = results("reference", dtype, True)
    plain, got = results("cuda", dtype, False), results("cuda", dtype, True)
    return of_passes(plain, got, base, oracle, roundoff, max(4 * item.H, item.T * item.N))


def of_passes(plain: dict, got: dict, *budget) -> dict[str, str]:
    """`said` of each pass: `plain` are the results without a tape, `got` those with one and the
    gradients."""
    tape = {k: got[k] for k in plain}
    gradients = {k: v for k, v in got.items() if k not in plain}
    return {name: said(of, *budget) for name, of in zip(PASSES, (plain, tape, gradients), strict=True)}


def said(got: dict, base: dict, oracle: dict, roundoff: float, longest: int) -> str:
    """``ok``, or which result is how far off. A float64 call has no truer oracle: a thousand
    roundings are allowed there."""
    import torch

    def share(values, name):
        scale = float(oracle[name].abs().max()) or 1.0
        return float((values[name].double() - oracle[name]).abs().max()) / scale

    wide = torch.float64 if roundoff < 1e-12 else torch.float32
    one = roundoff + longest**0.5 * torch.finfo(wide).eps / 2
    one *= 1000 if wide == torch.float64 else 1
    worst = max(share(base, name) for name in got)
    for name in got:
        error, budget = share(got, name), 2 * worst + one
        if not error <= budget:  # so that a NaN is over it
            return f"wrong: {name} is off by {error:.2e} of its largest, allowed {budget:.2e}"
    return "ok"


def work(group: tuple[str, str], device: str, dry: bool, write: int) -> None:
    """In a forked process: a group's items, each as lines of JSON into the pipe."""

    def tell(**what):
        os.write(write, (json.dumps(what) + "\n").encode())

    for item in items(*group, dry):
        tell(begins=item.key)
        try:
            tell(ends=item.key, passes=judge(item, device))
        except Exception as error:  # after an error of CUDA nothing works in this process
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0][:200]
            tell(ends=item.key, passes=dict.fromkeys(PASSES, f"{type(error).__name__}: {first}"))
            if device == "cuda":
                return


@dataclass
class Group:
    """A forked process that goes through a group."""

    name: tuple[str, str]
    pid: int
    read: int
    since: float
    item: str = ""
    rest: bytes = b""
    ended: bool = False
    seen: list = field(default_factory=list)


class Zygote:
    """Forks the groups and writes what they say into the journal."""

    def __init__(self, journal: Journal, device: str, dry: bool, stop: float) -> None:
        self.journal, self.device, self.dry, self.stop = journal, device, dry, stop
        self.given_up: dict[str, str] = {}
        self.stall = DRY_STALL_SECONDS if dry else STALL_SECONDS

    def run(self, waiting: list, processes: int) -> None:
        running: list[Group] = []
        while waiting or running:
            while waiting and len(running) < processes and time.time() < self.stop:
                name = waiting.pop(0)
                if name[0] not in self.given_up:
                    running.append(self.begin(name))
            if not running:
                return
            ready, _, _ = select.select([g.read for g in running], [], [], 0.1)
            for group in [g for g in running if g.read in ready]:
                self.take(group)
            for group in running:
                late = time.time() - group.since > self.stall
                if not group.ended and (late or time.time() > self.stop):
                    os.kill(group.pid, signal.SIGKILL)
                    self.lost(group, f"hang: no answer in {self.stall:.0f} s" if late else "")
            running = [g for g in running if not g.ended]

    def begin(self, name: tuple[str, str]) -> Group:
        read, write = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                work(name, self.device, self.dry, write)
            finally:
                os._exit(0)
        os.close(write)
        return Group(name, pid, read, time.time())

    def take(self, group: Group) -> None:
        data = os.read(group.read, 1 << 16)
        if not data:
            _, status = os.waitpid(group.pid, 0)
            os.close(group.read)
            group.ended = True
            if group.item:
                self.record(group.item, f"crash: status {status}")
            return
        group.since = time.time()
        *lines, group.rest = (group.rest + data).split(b"\n")
        for text in lines:
            what = json.loads(text)
            group.item = what.get("begins", "")
            if "ends" in what:
                self.journal.append("verdict", what["ends"], passes=what["passes"])

    def lost(self, group: Group, why: str) -> None:
        group.ended = True
        os.close(group.read)
        os.waitpid(group.pid, os.WNOHANG)  # what the driver holds may take a while to go
        if why:
            self.given_up[group.name[0]] = why
            self.record(group.item or f"{PART}/{group.name[0]}/{group.name[1]}/start", why)

    def record(self, key: str, why: str) -> None:
        self.journal.append("verdict", key, passes=dict.fromkeys(PASSES, why))


def table(found: dict[str, dict]) -> list[list[str]]:
    """A line for each family and kind: how many calls each pass got right, or what went wrong
    first. `found`: the journal's newest ``verdict`` of each key."""
    lines = []
    for family in FAMILIES:
        for kind in KINDS:
            prefix = f"{PART}/{family}/{kind}/"
            each = [r["passes"] for key, r in found.items() if key.startswith(prefix)]
            if not each:
                continue
            words = []
            for name in PASSES:
                bad = [p[name] for p in each if p[name] not in ("ok", "not possible")]
                right = sum(p[name] == "ok" for p in each)
                possible = sum(p[name] != "not possible" for p in each)
                words.append(bad[0] if bad else f"ok {right}" if possible else "not possible")
            lines.append([family, kind, *words])
    return lines


def bad_families(found: dict[str, dict]) -> list[str]:
    """Words of FASTLSTM_CUDA_KERNELS whose kernels were wrong, crashed or hung."""
    bad = []
    for key, record in found.items():
        family = key.split("/")[1]
        wrong = any(p not in ("ok", "not possible") for p in record["passes"].values())
        if wrong and FAMILIES[family][2] != "auto":
            bad.append(FAMILIES[family][2])
    return sorted(set(bad))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="a part of ./run gpu; see benchmarks.gpu.plan")
    parser.add_argument("--stop", type=float, default=float("inf"))
    parser.add_argument("--processes", type=int, default=PROCESSES)
    args = parser.parse_args(argv)
    journal = Journal.from_environment()
    if journal is None:
        parser.error("no journal in the environment: this is a part of ./run gpu")
    dry = stand_ins.is_dry()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the forked processes open the GPU
    import torch

    import fastlstm  # noqa: F401

    torch.set_num_threads(1)
    if dry:
        stand_ins.fake_backends()
    done = journal.latest("verdict")
    waiting = [group for group in groups(dry) if not all(item.key in done for item in items(*group, dry))]
    Zygote(journal, "cpu" if dry else "cuda", dry, args.stop).run(waiting, args.processes)
    return 0


if __name__ == "__main__":
    if stand_ins.is_dry():
        stand_ins.prepare_environment()
    sys.exit(main())
