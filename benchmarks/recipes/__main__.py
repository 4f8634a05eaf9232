"""Libraries that use nn.LSTM, with FastLSTM in its place: python -m benchmarks.recipes

Runs the programs of examples/recipes whose library is installed, each with nn.LSTM and with
FastLSTM by turns in this process. Libraries that need different environments still come into one
file: rows that are there, of the same commit, CPU, torch and thread count, are kept unless they are
measured anew.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.common import machine, programs, terminal, timing
from benchmarks.recipes import report
from examples.recipes import RECIPES
from examples.recipes.common import ROUNDS

PLAIN, FAST = "nn.LSTM", "FastLSTM"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)} (all)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each ({ROUNDS})")
    args = programs.parsed(parser, argv, "rounds")
    for name in args.names:
        if name not in RECIPES:
            parser.error(f"got {name!r}, expected some of {', '.join(RECIPES)}")
    return args


def measure(name: str, quick: bool, rounds: int, threads: int) -> dict:
    """The row of a recipe; ModuleNotFoundError where it lacks its library."""
    recipe = importlib.import_module(f"examples.recipes.{name}")
    row = {
        "recipe": name,
        "what": recipe.WHAT,
        "library": recipe.LIBRARY,
        "version": version(recipe.LIBRARY) if recipe.LIBRARY else "",  # or PackageNotFoundError
        "threads": threads,
        "date": datetime.date.today().isoformat(),
        "load_average": machine.load_average(),
    }
    with timing.torch_threads(threads):
        outcome = recipe.run(quick, 1 if quick else rounds)
    plain, fast = outcome.seconds
    return row | {
        "status": "ok",
        "times": {PLAIN: timing.spread(plain), FAST: timing.spread(fast)},
        "ratios": {FAST: {"of": PLAIN, **timing.paired_ratio(plain, fast)}},
        "apart": outcome.apart,
    }


def kept(path: Path, described: dict, threads: int, names: Sequence[str]) -> list[dict]:
    """The rows of an earlier run that stand beside those of `names`: see above."""
    if not path.is_file() or described["commit"] in ("dirty", "unknown"):
        return []
    before = json.loads(path.read_text())
    same = all(before["machine"][key] == described[key] for key in ("cpu", "commit", "torch"))
    rows = before["rows"] if same else []
    return [row for row in rows if row["threads"] == threads and row["recipe"] not in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Run; gives the exit status: 1 where nothing could be measured, or a recipe failed."""
    args = parse(argv)
    started = time.perf_counter()
    described = machine.describe()
    rows, failed, chosen = [], [], args.names or RECIPES
    with terminal.progress(len(chosen)) as advance:
        for name in chosen:
            try:
                rows.append(measure(name, args.quick, args.rounds, args.threads))
            except ModuleNotFoundError as error:
                advance(f"{name}: left out, {error.name} is not installed")
                continue
            except Exception as error:
                failed.append(name)
                advance(f"{name}: failed, {type(error).__name__}: {error}")
                continue
            advance(f"{name}: {rows[-1]['ratios'][FAST]['ratio']:.2f}")
    if not rows:
        print("nothing was measured: pip install 'fastlstm[recipes]'", file=sys.stderr)
        return 1
    path = programs.path_of(args, described, report.KIND)
    rows += kept(path, described, args.threads, [*(row["recipe"] for row in rows), *failed])
    rows.sort(key=lambda row: RECIPES.index(row["recipe"]))
    programs.leave(path, report, described, rows, started)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
