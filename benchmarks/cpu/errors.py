"""How far from float64 the results and gradients of every backend are, beside nn.LSTM's.

On a few small problems that nn.LSTM can run too, a module's error in one tensor is
max |got - oracle| / max |oracle|, where the oracle is fastlstm's reference in float64 on the same
numbers; of a group of tensors (the results, the gradients), of the problems and of their draws the
largest counts. float64 itself has no wider oracle here: its rows are the distance from the
reference.

Each contender runs in a process of its own, ``python -m benchmarks.cpu.errors``, since a process
chooses the instruction set and Triton's interpreter once. Without a GPU, the sources of the GPU
backends run on the CPU, as in a dry run of ``./run gpu``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from benchmarks.common import stand_ins
from benchmarks.common.machine import ROOT
from benchmarks.common.peers import Problem
from benchmarks.common.precision import fp32_precision
from benchmarks.common.shapes import Case
from benchmarks.cpu import engines, int8_engines

NN_LSTM = "nn.LSTM"
ISAS = ("generic", "avx2", "avx512", "amx")
STORED = "float32, bfloat16 weights"  # weight_dtype; the oracle's weights are not rounded
INT8, INT8_WEIGHTS = "float32, int8", "float32, int8 weights only"
# Other implementations with int8 weights, which have rows of that kind only.
QUANTISED = {"torch's quantize_dynamic": int8_engines.TORCH}
QUANTISED["ONNX Runtime's quantize_dynamic"] = int8_engines.ONNX_RUNTIME
# On a GPU float32 is measured in full precision and with products in TF32.
KINDS = {
    "float64": (torch.float64, "ieee"),
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    STORED: (torch.float32, "ieee"),
    INT8: (torch.float32, "ieee"),
    INT8_WEIGHTS: (torch.float32, "ieee"),
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
}
# Unit roundoff of the factors of products; errors are also given as multiples of it.
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11}
ROUNDOFF |= {INT8: 2.0**-8, INT8_WEIGHTS: 2.0**-8}  # half a level of 127
ROUNDOFF |= {STORED: 2.0**-8, "bfloat16": 2.0**-8, "float16": 2.0**-11}
T, N, I, H = 48, 7, 24, 40  # with fewer rows, AMX would not be used
PROBLEMS = {
    "one layer": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "projection": {"proj_size": 17},
}
DRAWS = 3


@dataclass(frozen=True)
class Contender:
    """backend: nn.LSTM, or a backend of fastlstm. where: "cpu", "gpu", or "simulated" for a GPU
    backend without a GPU. isa: the instruction set of backend "cpu", otherwise ""."""

    backend: str
    where: str
    isa: str = ""

    def __str__(self) -> str:
        detail = {"gpu": "on the GPU", "simulated": "its kernels run on the CPU", "cpu": ""}
        words = [self.isa, detail[self.where] if self.backend != NN_LSTM else self.where.upper()]
        detail = ", ".join(filter(None, words))
        return f"{self.backend} ({detail})" if detail else self.backend


def contenders() -> list[Contender]:
    """Those of this machine; one that cannot run has a row with the reason."""
    from fastlstm.backends import native, table

    found = [Contender(NN_LSTM, "cpu"), Contender("reference", "cpu")]
    if native.load() is None:
        best = native.cpu_isa()
        # VNNI changes nothing but 8-bit weights.
        plain = {"avxvnni": "avx2", "avx512vnni": "avx512"}.get(best, best)
        isas = ISAS[: ISAS.index(plain) + 1] if plain in ISAS else (plain,)
        if plain == "avx512":
            # Never chosen by default; and AMX's numbers without its instructions.
            isas += ("avx512bf16", "amx-emulated")
        found += [Contender("cpu", "cpu", isa) for isa in isas]
    gpu = torch.cuda.is_available()
    if gpu:
        found.append(Contender(NN_LSTM, "gpu"))
    names = [row.name for row in table.TABLE if row.name in stand_ins.BACKENDS]
    found += [Contender(name, "gpu" if gpu else "simulated") for name in names]
    return found + [Contender(name, "cpu") for name in QUANTISED]


def measure(contender: Contender, kind: str) -> dict[str, object]:
    """``results`` and ``gradients``, the largest relative errors, and ``worst``, the tensors."""
    from fastlstm import FastLSTM
    from fastlstm.testing import make_states, map_tensors, relative_errors, run

    dtype, products = KINDS[kind]
    device = "cuda" if contender.where == "gpu" else "cpu"
    largest, worst = {"results": 0.0, "gradients": 0.0}, {}
    for problem, options in PROBLEMS.items():
        for draw in range(DRAWS):
            torch.manual_seed(draw)
            oracle = FastLSTM(I, H, backend="reference", **options).to(dtype)
            given = torch.randn(T, N, I).to(dtype), make_states(oracle, N, dtype)
            module = oracle.to_torch() if contender.backend == NN_LSTM else copy.deepcopy(oracle)
            module.backend = contender.backend
            if kind == STORED:
                module.weight_dtype = torch.bfloat16
            if kind in (INT8, INT8_WEIGHTS):
                module.weight_dtype = torch.int8
                module.weight_only = kind == INT8_WEIGHTS
            asked = {"gradients": kind not in (INT8, INT8_WEIGHTS), "dtype": dtype}
            with fp32_precision(products):
                there = map_tensors(lambda t: t.to(device), given)
                with torch.set_grad_enabled(asked["gradients"]):
                    got = run(module.to(device), *there, **asked)
            wide = map_tensors(lambda t: t.double(), given)
            exact = run(oracle.double(), *wide, **asked)
            errors = relative_errors({k: v.cpu() for k, v in got.items()}, exact)
            for name, error in errors.items():
                group = "gradients" if name.startswith("d_") else "results"
                # A NaN counts as the largest, and stays.
                if not (error <= largest[group] or math.isnan(largest[group])):
                    largest[group], worst[group] = error, f"{name}, {problem}"
    if not asked["gradients"]:
        del largest["gradients"]
    return {**largest, "worst": worst}


def measure_quantised(contender: Contender) -> dict[str, object]:
    """`measure` for other int8 implementations: one layer without states, which all support."""
    largest = 0.0
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        problem = Problem.make(Case(T, N, I, H), torch.float32)
        engine = int8_engines.ENGINES[QUANTISED[contender.backend]]
        with torch.no_grad():
            got = engines.results(engine(problem, 1))
            exact = int8_engines.exact_results(problem)
        for name, value in got.items():
            largest = max(largest, int8_engines.relative(value, exact[name]))
    return {"results": largest, "worst": {}}


def cannot_run(contender: Contender) -> str | None:
    """Why this process cannot run the contender, or None. Installs replacements of GPU backends."""
    from fastlstm.backends import native

    if contender.isa:
        if native.load():
            return native.load()
        try:
            native.cpu_isa()
        except RuntimeError as error:  # it says which this machine has
            return str(error)
    if contender.where == "simulated":
        families = stand_ins.fake_backends()
        if families[contender.backend] == "reference":
            return "its kernels do not run here"
    return None


def rows_of(contender: Contender) -> Iterator[dict[str, object]]:
    """A row per kind, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # nn.LSTM tells of its slower paths
    reason = cannot_run(contender)
    if reason:
        yield {**asdict(contender), "kind": "all", "status": "failed", "error": reason}
        return
    for kind in [INT8] if contender.backend in QUANTISED else KINDS:
        if kind == "tf32" and contender.where == "cpu":
            continue  # the CPU has no such products
        if kind == STORED and contender.backend != "cpu":
            continue  # the others widen the weights first
        if kind in (INT8, INT8_WEIGHTS) and contender.backend not in ("cpu", *QUANTISED):
            continue  # the reference is the definition, the GPU's widen the weights
        row = {**asdict(contender), "kind": kind}
        try:
            if contender.backend in QUANTISED:
                yield row | {"status": "ok", **measure_quantised(contender)}
            else:
                yield row | {"status": "ok", **measure(contender, kind)}
        except Exception as error:
            text = str(error).splitlines() or [""]
            yield row | {"status": "failed", "error": f"{type(error).__name__}: {text[0][:200]}"}


def in_fresh_process(contender: Contender, timeout: float = 1800) -> list[dict[str, object]]:
    """`rows_of` in a process of its own."""
    env = dict(os.environ)
    if contender.isa:
        env["FASTLSTM_CPU_ISA"] = contender.isa
    if contender.where == "simulated":
        env |= {stand_ins.VARIABLE: "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "benchmarks.cpu.errors", json.dumps(asdict(contender))]
    failed = {**asdict(contender), "kind": "all", "status": "failed"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return [failed | {"error": f"not done in {timeout:g} s"}]
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return [failed | {"error": lines[-1]}]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def run(found: Sequence[Contender] | None = None) -> Iterator[list[dict[str, object]]]:
    """The rows of one contender after the other."""
    for contender in contenders() if found is None else found:
        yield in_fresh_process(contender)


def name_of(row: dict) -> str:
    return str(Contender(row["backend"], row["where"], row["isa"]))


def cells(row: dict) -> tuple[str, str]:
    """Both errors as text, with how many roundoffs each is."""
    if row["status"] != "ok":
        return row["error"], ""
    unit = ROUNDOFF[row["kind"]]
    found = [row.get(group) for group in ("results", "gradients")]
    return tuple("none" if e is None else f"{e:.1e} ({e / unit:.1f} u)" for e in found)


def table_rows(rows: Sequence[dict]) -> list[tuple[str, str, str, str]]:
    """(kind, contender, results, gradients), kind by kind."""
    kinds = [*KINDS, "all"]
    ordered = sorted(rows, key=lambda row: kinds.index(row["kind"]))
    return [(row["kind"], name_of(row), *cells(row)) for row in ordered]


def main() -> None:
    parser = argparse.ArgumentParser(description="measure one contender in this process")
    parser.add_argument("request", help="JSON: backend, where, isa")
    contender = Contender(**json.loads(parser.parse_args().request))
    # What compilers and interpreters print is not for the reader of these lines.
    with contextlib.redirect_stdout(sys.stderr):
        rows = list(rows_of(contender))
    print(*map(json.dumps, rows), sep="\n")


if __name__ == "__main__":
    main()
