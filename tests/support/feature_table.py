"""The table of features in docs/support.md, made from tests: each says with a mark what it shows.

`@pytest.mark.shows("lengths", "projection", backend="cpu", direction="both")` says that a test
holds these features of `FEATURES`, together, to an oracle: the forward pass, the backward pass, or
both (the default). Without `backend`, the test's parameter `backend` or `family` has it; a test
that runs the CUDA sources on the CPU (tests/simt) shows "cuda", one in Triton's interpreter
"triton". `./run table` runs all tests so marked and writes the table if every one of them passed;
test_feature_table.py compares the table with the marks.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "support.md"
BACKENDS = ("reference", "cpu", "cuda", "triton")
DIRECTIONS = {"forward": ("forward",), "backward": ("backward",), "both": ("forward", "backward")}
FAMILIES = {"lstm": "cpu", "simt": "cuda"}
RECORD = "FASTLSTM_SHOWS"  # names the file to which every pytest process appends what it shows
BEGIN, END = "<!-- written by ./run table -->\n", "<!-- end of it -->\n"

# What a mark may name, and how the table's row says it.
FEATURES = {
    "layers": "`num_layers`",
    "bidirectional": "`bidirectional`",
    "projection": "`proj_size`",
    "no bias": "`bias=False`",
    "batch_first": "`batch_first`",
    "unbatched": "unbatched input",
    "packed": "`PackedSequence`",
    "nested": "jagged NestedTensor",
    "hx": "given states",
    "dropout": "`dropout`, the masks of nn.LSTM",
    "lengths": "`lengths`",
    "reset_mask": "`reset_mask`",
    "cells": "`return_cell_sequence`",
    "layer_norm": "`layer_norm`",
    "recurrent_dropout": "`recurrent_dropout`",
    "weight_dropout": "`weight_dropout`",
    "zoneout": "`zoneout`",
    "variational": "`variational_dropout`",
    "batch_first_states": "`batch_first_states`",
    "layer_outputs": "`return_layer_outputs`",
    "step": "`step`, a sequence in chunks",
    "checkpoint": "`checkpoint_every`",
    "int8": "`weight_dtype=torch.int8`, `weight_only`, with every form of call",
    "frozen": "part of the gradients only",
    "eval": "backward in eval mode",
    "double": "double backward",
    "autocast": "autocast",
    "func": "`torch.func.grad`, `vjp`, `jacrev`",
    "forward mode": "`jvp`, `jacfwd`, `torch.autograd.forward_ad`",
    "hessian": "`hessian`, `jacrev(jacrev)`, `grad(jvp)`, …",
    "vmap": "`vmap` over inputs, states and masks, one call of the kernels",
    "samples": "per-sample gradients by `vmap(grad)`",
    "ensembles": "`vmap` over weights (`stack_module_state`)",
    "recompute": "`torch.utils.checkpoint`, both ways",
    "hooks": "hooks, hooks on saved tensors, anomaly mode",
    "compile": "torch.compile, full graph",
    "any T and N": "torch.compile, one graph for any T and N",
    "compiled func": "torch.compile of `grad`, `vmap`, `jvp`",
    "export": "torch.export, strict and not, any T and N",
    "archives": "`torch.export.save`, AOTInductor: loaded in a fresh process",
    "aten": "exported programs of ATen's ops alone (`decompositions`)",
    "repeat": "the same bits again",
    "distributed": "DDP, FSDP2, DTensors",
}


def shown_by(item) -> list[tuple[str, str, str]]:
    """(feature, backend, direction) of all that a collected test's marks say."""
    found, params = [], (getattr(item, "callspec", None) and item.callspec.params) or {}
    for mark in item.iter_markers("shows"):
        if not mark.args:
            continue
        backend = mark.kwargs.get("backend") or params.get("backend") or params.get("family")
        backend = FAMILIES.get(backend, backend)
        directions = DIRECTIONS.get(mark.kwargs.get("direction", "both"))
        unknown = [feature for feature in mark.args if feature not in FEATURES]
        if backend not in BACKENDS or directions is None or unknown:
            raise ValueError(f"{item.nodeid}: {mark} of backend {backend!r} shows nothing known")
        found += [(f, backend, d) for f in mark.args for d in directions]
    return found


class Recorder:
    """The plugin: appends to a file what each collected test shows, and what became of it."""

    def __init__(self, path: str) -> None:
        self.path, self.shown = path, {}

    def append(self, nodeid: str, outcome: str) -> None:
        line = json.dumps({"test": nodeid, "outcome": outcome, "shows": self.shown[nodeid]})
        with open(self.path, "a") as file:
            file.write(line + "\n")

    def pytest_collection_finish(self, session):
        self.shown = {i.nodeid: found for i in session.items if (found := shown_by(i))}
        for nodeid in self.shown:
            self.append(nodeid, "declared")

    def pytest_runtest_logreport(self, report):
        if report.nodeid in self.shown and (report.when == "call" or not report.passed):
            self.append(report.nodeid, report.outcome)


def marked_files() -> list[Path]:
    """The test files with a mark, those for an inner process included."""
    files = sorted(TESTS.rglob("*.py"))
    return [f for f in files if "mark.shows(" in f.read_text() and f != Path(__file__)]


def cells(records) -> set[tuple[str, str, str]]:
    return {tuple(cell) for record in records for cell in record["shows"]}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(shown: set[tuple[str, str, str]]) -> str:
    """The table in Markdown."""
    rows = [["", *(f"`{backend}`" for backend in BACKENDS)], ["---"] * (len(BACKENDS) + 1)]
    for feature, text in FEATURES.items():
        row = [text]
        for backend in BACKENDS:
            passes = [d for d in DIRECTIONS["both"] if (feature, backend, d) in shown]
            row.append("yes" if len(passes) == 2 else " ".join(passes) or "–")
        rows.append(row)
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def committed() -> str:
    """The table in the page."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def pytest_run(record: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run pytest on the marked tests, with the plugin writing to `record`."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "shows", *arguments],
        cwd=TESTS.parent,
        env={**os.environ, RECORD: str(record), **environment},
        text=True,
    )


def main() -> int:
    record = TESTS.parent / "build" / "shows.jsonl"
    record.parent.mkdir(exist_ok=True)
    record.write_text("")
    # The file for Triton's interpreter runs in an inner process, of which its own test takes care.
    names = [str(f) for f in marked_files() if f.name.startswith("test_")]
    status = pytest_run(record, "--all", *names, *sys.argv[1:]).returncode
    records = read(record)
    declared = {r["test"] for r in records}
    passed = {r["test"] for r in records if r["outcome"] == "passed"}
    failed = {r["test"] for r in records if r["outcome"] not in ("passed", "declared")}
    if status or declared - passed or failed:
        print("nothing written: not every test passed", *sorted(failed | declared - passed)[:20])
        return 1
    text = PAGE.read_text()
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    new = BEGIN + table(cells(records)) + END
    PAGE.write_text(re.sub(pattern, lambda _: new, text, flags=re.DOTALL))
    print(f"{PAGE.name}: the table of {len(passed)} tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
