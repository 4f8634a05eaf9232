"""python -m examples: trains nn.LSTM and FastLSTM side by side on real data, and draws it."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.common import MissingPackage, Settings
from examples.report import print_result, print_summary

DEMOS = ("digits", "forecast", "text", "converted")
INT8 = ("digits", "text")  # what --int8 measures
ON_REQUEST = ("policy",)  # on an environment of its own, and longer


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples", description=__doc__)
    parser.add_argument(
        "demos",
        nargs="*",
        metavar="demo",
        help=f"which to run, of {', '.join(DEMOS)} (all), or policy",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and dropout (0)")
    parser.add_argument("--threads", type=int, help="torch threads (torch's own choice)")
    parser.add_argument(
        "--epochs",
        type=float,
        default=1.0,
        metavar="SCALE",
        help="multiplies every program's epochs (1.0)",
    )
    parser.add_argument("--backend", default="auto", help="FastLSTM's backend (auto)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo.png"),
        metavar="FILE",
        help="where to save the picture (demo.png)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="then measure digits and text again with int8 weights: what that costs",
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps of each, in seconds")
    args = parser.parse_args(argv)
    for name in args.demos:
        if name not in DEMOS + ON_REQUEST:
            known = ", ".join(DEMOS + ON_REQUEST)
            parser.error(f"no demo is called {name!r}; choose from {known}")
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads must be at least 1, got {args.threads}")
    if not 0 < args.epochs < float("inf"):
        parser.error(f"--epochs must be a positive factor, got {args.epochs}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen programs; returns 0 when all of them ran, 1 when one could not."""
    args = parse(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    settings = Settings(args.seed, args.epochs, args.backend, args.smoke, args.int8)
    threads = torch.get_num_threads()
    machine = f"torch {torch.__version__}, {threads} thread{'s' * (threads > 1)}"
    print(f"{machine}, float32, seed {args.seed}, backend {args.backend}\n")

    start = time.perf_counter()
    results, missing = [], []
    for name in args.demos or (INT8 if args.int8 else DEMOS):
        try:
            result = importlib.import_module(f"examples.{name}").run(settings)
        except MissingPackage as error:
            missing.append(str(error))
            print(f"skipped: {error}\n")
            continue
        print_result(result)
        results.append(result)
    if not results:
        return 1
    print_summary(results)
    lost = [loss for result in results for loss in result.losses_of_int8 if not loss.small]
    for loss in lost:
        print(f"int8 costs more than it may: {loss}")

    from examples.picture import save

    caption = f"nn.LSTM and FastLSTM, same weights, same batches ({machine}, seed {args.seed})"
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        save(results, str(args.out), caption)
        print(f"picture: {args.out}")
    except MissingPackage as error:
        missing.append(str(error))
        print(f"no picture: {error}")
    print(f"all in {time.perf_counter() - start:.0f} s")
    return 1 if missing or lost else 0


if __name__ == "__main__":
    sys.exit(main())
