"""Writes the documentation's figures from benchmarks/results: ``python -m benchmarks.machines``.

docs/results.md has a line for each file of the core shapes, including those limited to an
instruction set and those with poor results; docs/reinforcement-learning.md has the files of
recurrent PPO; the README has four numbers and a picture. ``--write`` updates all of them. The
figures are copied from the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.machine import RESULTS, ROOT
from benchmarks.common.tables import markdown_line, markdown_table
from benchmarks.cpu.overview import save_overview
from benchmarks.rl.report import tables as ppo_tables

README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
RL_PAGE = ROOT / "docs" / "reinforcement-learning.md"
PICTURE = ROOT / "docs" / "speed.png"
# The results files of the README's numbers and picture.
SPEED, PEERS = "intel-xeon-processor-bf528fe-full", "amd-epyc-3657186-peers"
DRAWN = ("float32", 2)
HEADLINES = (("float32", "infer"), ("float32", "train"), ("bfloat16", "train"))
WORDS = {"infer": "inference", "train": "training"}
BEGIN = "<!-- written by python -m benchmarks.machines --write -->\n"
END = "<!-- end of the machines -->\n"
CONFIGS = [(dtype, mode) for dtype in ("float32", "bfloat16") for mode in ("infer", "train")]
HEADER = ["CPU", "cores", "condition", "cells", "below 1"]


def measured(folder: Path) -> list[tuple[str, dict]]:
    """(file name, result) of every run of the core shapes with FastLSTM on a CPU, by CPU and
    date.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        settings = result.get("settings", {})
        core = settings.get("variant") == "plain" and not settings.get("control")
        if result.get("kind") == "speed" and core and not path.name.startswith("latest"):
            found.append((path.name, result))
    return sorted(
        found, key=lambda each: (each[1]["machine"]["cpu"], each[1]["settings"]["date"], each[0])
    )


def line_of(name: str, result: dict) -> list[str]:
    """Geometric means by thread count, with the least ratio of all of them in brackets."""
    machine = result["machine"]
    rows = [row for row in result["rows"] if row["status"] == "ok"]
    lost = sum(row["ratio"] < 1 for row in rows)
    cells = [" ".join([machine["cpu"], f"({last(machine['flags'])})"]), str(machine["cores"])]
    cells += [condition(result), str(len(rows)), str(lost)]
    for config in CONFIGS:
        entries = [
            entry
            for entry in result["summary"]
            if (entry["dtype"], entry["mode"]) == config and "geomean" in entry
        ]
        entries.sort(key=lambda entry: entry["threads"])
        means = ", ".join(f"{entry['geomean']:.2f}" for entry in entries)
        least = min((entry["least"] for entry in entries), default=0.0)
        cells.append(f"{means} ({least:.2f})" if entries else "")
    stem = name.removesuffix(".json")
    return [*cells, f"[{stem}](../{RESULTS.relative_to(ROOT)}/{stem}.md)"]


def last(flags: Sequence[str]) -> str:
    """The newest of the CPU's vector flags, as machine.FLAGS orders them."""
    return flags[-1] if flags else "no known vector flag"


def condition(result: dict) -> str:
    parts = []
    isa = (result["machine"].get("limits") or {}).get("FASTLSTM_CPU_ISA")
    if isa:
        parts.append(isa)
    busy = result["settings"].get("busy")
    if busy:
        parts.append(f"beside {busy} busy process{'es' if busy > 1 else ''}")
    return ", ".join(parts)


def table(folder: Path = RESULTS) -> str:
    """In Markdown, with an end of line."""
    configs = [" ".join(config) for config in CONFIGS]
    header = [*HEADER, *configs, "file"]
    lines = [line_of(*each) for each in measured(folder)]
    return "".join(f"{markdown_line(line)}\n" for line in (header, ["---"] * len(header), *lines))


def recurrent_ppo(folder: Path = RESULTS) -> str:
    """A table in Markdown for every run of ``python -m benchmarks.rl``, headed by its machine."""
    parts = []
    for path in sorted(folder.glob("*-rl.json")):
        if path.name.startswith("latest"):
            continue
        result = json.loads(path.read_text())
        machine, stem = result["machine"], path.stem
        loads = " to ".join(
            f"{machine[name]:.0f}" for name in ("load_average", "load_average_after")
        )
        parts.append(
            f"{machine['cpu']} ({last(machine['flags'])}), {machine['cores']} cores at a load "
            f"average of {loads}, torch {machine['torch']}, sb3-contrib {machine['sb3_contrib']} "
            f"([{stem}](../{RESULTS.relative_to(ROOT)}/{stem}.md)):"
        )
        parts += map(markdown_table, ppo_tables(result))
    return "\n\n".join(parts) + "\n"


def load(stem: str, folder: Path = RESULTS) -> dict:
    return json.loads((folder / f"{stem}.json").read_text())


def headlines(folder: Path = RESULTS) -> str:
    """The README's four numbers in Markdown: three of a full run, one beside other engines."""
    speed, peers = load(SPEED, folder), load(PEERS, folder)
    lines = [["CPU time of one layer", "beside", "ratio", "slower in", "least", "machine, file"]]
    lines.append(["---"] * len(lines[0]))
    threads = DRAWN[1]
    for dtype, mode in HEADLINES:
        config = {"dtype": dtype, "mode": mode, "threads": threads}
        (entry,) = (e for e in speed["summary"] if config.items() <= e.items())
        rows = [r for r in speed["rows"] if r["status"] == "ok" and config.items() <= r.items()]
        what = f"{dtype} {WORDS[mode]}, {threads} threads"
        ratios = [row["ratio"] for row in rows]
        lines.append([what, "nn.LSTM", *judged(entry, ratios), link(SPEED, speed)])
    entry = next(entry for entry in peers["summary"] if entry["lane"] == "FastLSTM")
    ratios = [row["ratios"]["FastLSTM"]["ratio"] for row in peers["rows"] if row["status"] == "ok"]
    what = f"float32 inference, {entry['threads']} thread"
    others = "best of nn.LSTM, ONNX Runtime, OpenVINO"
    lines.append([what, others, *judged(entry, ratios), link(PEERS, peers)])
    return "".join(f"{markdown_line(line)}\n" for line in lines)


def judged(entry: dict, ratios: list[float]) -> list[str]:
    """Geometric mean, how many cells of how many are below 1, the least."""
    lost = f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)} cells"
    return [f"**{entry['geomean']:.2f}**", lost, f"{entry['least']:.2f}"]


def link(stem: str, result: dict) -> str:
    machine = result["machine"]
    name = f"{machine['cpu'].replace('(R)', '')} ({last(machine['flags'])})"
    return f"[{name}]({RESULTS.relative_to(ROOT)}/{stem}.md)"


def between(text: str) -> str:
    """The part of a page between the markers; ValueError unless each occurs exactly once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected one {BEGIN.strip()} and one {END.strip()} in the page")
    return text.split(BEGIN)[1].split(END)[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.machines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(str(path.relative_to(ROOT)) for path in (README, PAGE, RL_PAGE, PICTURE))
    parser.add_argument("--write", action="store_true", help=f"write them into {names}")
    args = parser.parse_args(argv)
    made = {README: headlines(), PAGE: table(), RL_PAGE: recurrent_ppo()}
    print(*made.values(), sep="\n", end="")
    if args.write:
        for page, part in made.items():
            text = page.read_text()
            page.write_text(text.replace(BEGIN + between(text) + END, BEGIN + part + END))
        save_overview(load(SPEED), *DRAWN, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
