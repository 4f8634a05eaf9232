"""Programs of other libraries, run with nn.LSTM and with FastLSTM by turns: the options and the
results files of benchmarks.rl and benchmarks.recipes.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.common import machine, terminal
from benchmarks.common.schema import SCHEMA, write
from benchmarks.common.tables import markdown_table


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None, *counts: str) -> argparse.Namespace:
    """The arguments, with the options that all these commands have. counts: options that are at
    least 1, beside those."""
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")
    parser.add_argument("--quick", action="store_true", help="whether it runs: tiny, few rounds")
    parser.add_argument("--save", action="store_true", help="name the results by CPU and commit")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="FOLDER")
    args = parser.parse_args(argv)
    for name in (*counts, "threads"):
        if getattr(args, name) < 1:
            parser.error(f"{name}: got {getattr(args, name)}, expected at least 1")
    return args


def path_of(args: argparse.Namespace, described: dict, kind: str) -> Path:
    return args.out / f"{machine.stem(described, args.save)}-{kind}.json"


def leave(path: Path, report: ModuleType, described: dict, rows: list[dict], started: float, **settings: object):
    """Shows and writes the results. report: has KIND, TITLE, MEANING (of the figures) and `tables`;
    described: the machine; started: by `time.perf_counter`."""
    described["load_average_after"] = machine.load_average()
    settings |= {"date": datetime.date.today().isoformat(), "wall_s": time.perf_counter() - started}
    result = {"schema": SCHEMA, "kind": report.KIND, "machine": described, "settings": settings}
    result |= {"rates": {}, "rows": rows, "summary": []}
    tables = report.tables(result)
    head = [
        f"{described['cpu']}, {described['cores']} cores, torch {described['torch']}{library(described)}, "
        f"commit {described['commit']}, {settings['date']}",
        report.MEANING,
    ]
    terminal.show(tables, head)
    write(result, path)
    path.with_suffix(".md").write_text("\n\n".join([f"# {report.TITLE}", *head, *map(markdown_table, tables)]) + "\n")
    print(f"written: {path} and .md")


def library(described: dict) -> str:
    return f", sb3-contrib {described['sb3_contrib']}" if "sb3_contrib" in described else ""


def interval(ratio: dict) -> str:
    """A ratio with its 95 % interval."""
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
