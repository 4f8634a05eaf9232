"""The README's table of the CPUs that were measured: ``python -m benchmarks.machines`` prints it.

One line for each file of the core shapes in benchmarks/results, whatever it was held to and however
it came out; ``--write`` puts the table where the README has it. The figures are the files' own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.machine import RESULTS, ROOT
from benchmarks.common.tables import markdown_line

README = ROOT / "README.md"
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
    return [*cells, f"[{stem}]({RESULTS.relative_to(ROOT)}/{stem}.md)"]


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


def in_readme(text: str) -> str:
    """The part of the README between the marks; ValueError where they are not there once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README: expected one {BEGIN.strip()} and one {END.strip()}")
    return text.split(BEGIN)[1].split(END)[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.machines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args(argv)
    made = table()
    print(made, end="")
    if args.write:
        text = README.read_text()
        old = BEGIN + in_readme(text) + END
        README.write_text(text.replace(old, BEGIN + made + END))
    return 0


if __name__ == "__main__":
    sys.exit(main())
