"""Writes the documentation's figures from benchmarks/results: ``python -m benchmarks.machines``.

docs/results.md has a line for each file of the core shapes, including those limited to an
instruction set and those with poor results; docs/reinforcement-learning.md has the files of
recurrent PPO, docs/nn-lstm.md those of the recipes; the README has a table of six lines and a
picture, of the files named below. ``--write`` updates all of them. The figures are copied from the
files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.common.machine import RESULTS, ROOT
from benchmarks.common.programs import library
from benchmarks.common.tables import Table, markdown_line, markdown_table, threads_text
from benchmarks.common.timing import geometric_mean
from benchmarks.cpu.overview import save_overview
from benchmarks.recipes.report import tables as recipe_tables
from benchmarks.rl.report import tables as ppo_tables

README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
RL_PAGE, RECIPES_PAGE = ROOT / "docs" / "reinforcement-learning.md", ROOT / "docs" / "nn-lstm.md"
PICTURE = ROOT / "docs" / "speed.png"
# The results files of the README's numbers, the newest of a kind on each CPU, and of its picture.
SPEED, NEWER = "intel-xeon-processor-bf528fe-full", "amd-epyc-c692dd2-full"
PEERS, INT8, PPO = "amd-epyc-c692dd2-peers", "amd-epyc-c692dd2-peers-int8", "amd-epyc-20ac88e-rl"
DRAWN = ("float32", 2)
HEADLINES = (
    ("float32", "infer", (SPEED, NEWER)),
    ("float32", "train", (SPEED, NEWER)),
    ("bfloat16", "train", (SPEED,)),
)
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
    return sorted(found, key=lambda each: (each[1]["machine"]["cpu"], each[1]["settings"]["date"], each[0]))


def line_of(name: str, result: dict) -> list[str]:
    """Geometric means by thread count, with the least ratio of all of them in brackets."""
    machine = result["machine"]
    rows = [row for row in result["rows"] if row["status"] == "ok"]
    lost = sum(row["ratio"] < 1 for row in rows)
    cells = [" ".join([machine["cpu"], f"({last(machine['flags'])})"]), str(machine["cores"])]
    cells += [condition(result), str(len(rows)), str(lost)]
    for config in CONFIGS:
        entries = [
            entry for entry in result["summary"] if (entry["dtype"], entry["mode"]) == config and "geomean" in entry
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


def runs(kind: str, tables: Callable[[dict], list[Table]], folder: Path = RESULTS) -> str:
    """The tables in Markdown of every file `*-<kind>.json`, each headed by its machine."""
    parts = []
    for path in sorted(folder.glob(f"*-{kind}.json")):
        if path.name.startswith("latest"):
            continue
        result = json.loads(path.read_text())
        machine, stem = result["machine"], path.stem
        loads = " to ".join(f"{machine[name]:.1f}" for name in ("load_average", "load_average_after"))
        parts.append(
            f"{machine['cpu']} ({last(machine['flags'])}), {machine['cores']} cores at a load "
            f"average of {loads}, torch {machine['torch']}{library(machine)} "
            f"([{stem}](../{RESULTS.relative_to(ROOT)}/{stem}.md)):"
        )
        parts += map(markdown_table, tables(result))
    return "\n\n".join(parts or ["No run has been saved yet."]) + "\n"


def load(stem: str, folder: Path = RESULTS) -> dict:
    return json.loads((folder / f"{stem}.json").read_text())


def headlines(folder: Path = RESULTS) -> str:
    """The README's table in Markdown; where a line is of two machines or rivals, with both."""
    lines = [["CPU time", "beside", "ratio", "slower in", "least", "machine, file"]]
    lines.append(["---"] * len(lines[0]))
    ppo = load(PPO, folder)
    updates = [row for row in ppo["rows"] if row["part"] == "update"]
    sizes = ", ".join(str(row["H"]) for row in updates)
    found = [row["ratios"]["fast policy"]["ratio"] for row in updates]
    what = f"recurrent PPO's updates, H = {sizes}"
    each = ", ".join(f"**{ratio:.2f}**" for ratio in found)
    lines.append([what, "sb3-contrib's", each, *judged([found])[1:], link(PPO, ppo)])
    for dtype, mode, stems in HEADLINES:
        config = {"dtype": dtype, "mode": mode, "threads": DRAWN[1]}
        files = {stem: load(stem, folder) for stem in stems}
        ratios = [
            [r["ratio"] for r in of["rows"] if r["status"] == "ok" and config.items() <= r.items()]
            for of in files.values()
        ]
        what = f"{dtype} {WORDS[mode]}, {threads_text(DRAWN[1])}"
        links = ", ".join(link(*each) for each in files.items())
        lines.append([what, "nn.LSTM", *judged(ratios), links])
    int8, peers = load(INT8, folder), load(PEERS, folder)
    rivals = "torch, int8", "ONNX Runtime, int8"
    ratios = [[beside(row, rival, "FastLSTM, int8") for row in ok(int8)] for rival in rivals]
    others = "; ".join(f"{rival.partition(',')[0]}'s" for rival in rivals)
    lines.append(["int8 inference, 1 thread", others, *judged(ratios), link(INT8, int8)])
    ratios = [[row["ratios"]["FastLSTM"]["ratio"] for row in ok(peers)]]
    others = "best of nn.LSTM, ONNX Runtime, OpenVINO"
    lines.append(["float32 inference, 1 thread", others, *judged(ratios), link(PEERS, peers)])
    return "".join(f"{markdown_line(line)}\n" for line in lines)


def ok(result: dict) -> list[dict]:
    """The rows on one thread that were timed."""
    return [row for row in result["rows"] if row["status"] == "ok" and row["threads"] == 1]


def beside(row: dict, rival: str, lane: str) -> float:
    """How many times as fast `lane` was: the row's own ratio where it is beside this rival, the
    best of all, else that of the medians."""
    if row["ratios"][lane]["of"] == rival:
        return row["ratios"][lane]["ratio"]
    return row["times"][rival]["median_s"] / row["times"][lane]["median_s"]


def judged(groups: Iterable[Sequence[float]]) -> list[str]:
    """Geometric mean, how many cells of how many are below 1, the least; of each group."""
    groups = list(groups)
    means = ", ".join(f"**{geometric_mean(ratios):.2f}**" for ratios in groups)
    lost = ", ".join(f"{sum(r < 1 for r in ratios)} of {len(ratios)}" for ratios in groups)
    return [means, lost, ", ".join(f"{min(ratios):.2f}" for ratios in groups)]


def link(stem: str, result: dict) -> str:
    """By the CPU's first two words, without the vendor's marks."""
    name = " ".join(result["machine"]["cpu"].replace("(R)", "").split()[:2])
    return f"[{name}]({RESULTS.relative_to(ROOT)}/{stem}.md)"


def made(folder: Path = RESULTS) -> dict[Path, str]:
    """What stands between the marks of each page."""
    return {
        README: headlines(folder),
        PAGE: table(folder),
        RL_PAGE: runs("rl", ppo_tables, folder),
        RECIPES_PAGE: runs("recipes", recipe_tables, folder),
    }


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
    pages = made()
    names = ", ".join(str(path.relative_to(ROOT)) for path in (*pages, PICTURE))
    parser.add_argument("--write", action="store_true", help=f"write them into {names}")
    args = parser.parse_args(argv)
    print(*pages.values(), sep="\n", end="")
    if args.write:
        for page, part in pages.items():
            text = page.read_text()
            page.write_text(text.replace(BEGIN + between(text) + END, BEGIN + part + END))
        save_overview(load(SPEED), *DRAWN, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
