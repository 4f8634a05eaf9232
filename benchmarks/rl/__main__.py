"""Recurrent PPO of sb3-contrib: nn.LSTM, converted, and the fast policy: python -m benchmarks.rl"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import machine, terminal
from benchmarks.common.schema import SCHEMA, write
from benchmarks.rl.report import head, markdown, tables


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl", description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 256], metavar="H")
    parser.add_argument("--envs", type=int, default=8, help="environments (8)")
    parser.add_argument("--steps", type=int, default=128, help="steps of a rollout (128)")
    parser.add_argument("--rounds", type=int, default=8, help="rollouts of each contender (8)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="whether it runs: tiny, two rollouts")
    parser.add_argument("--save", action="store_true", help="name the results by CPU and commit")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="FOLDER")
    args = parser.parse_args(argv)
    for name in ("envs", "steps", "rounds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"{name}: got {getattr(args, name)}, expected at least 1")
    if args.quick:
        args.hidden, args.envs, args.steps, args.rounds = [8], 2, 64, 2
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run; gives the exit status: 1 where what is to be compared is not there."""
    args = parse(argv)
    try:
        import sb3_contrib

        from benchmarks.rl import training
    except ImportError as error:
        print(f"{error}: pip install sb3-contrib gymnasium", file=sys.stderr)
        return 1
    started = time.perf_counter()
    described = machine.describe() | {"sb3_contrib": sb3_contrib.__version__}
    rows = []
    with terminal.progress(len(args.hidden)) as advance:
        for H in args.hidden:
            rows += training.measure(
                H,
                n_envs=args.envs,
                n_steps=args.steps,
                rounds=args.rounds,
                threads=args.threads,
                seed=args.seed,
            )
            advance(f"H = {H}: updates {rows[-2]['ratios'][training.FAST]['ratio']:.2f}")
    described["load_average_after"] = machine.load_average()
    result = {
        "schema": SCHEMA,
        "kind": "rl",
        "machine": described,
        "settings": {
            "date": datetime.date.today().isoformat(),
            "seed": args.seed,
            "wall_s": time.perf_counter() - started,
        },
        "rates": {},
        "rows": rows,
        "summary": [],
    }
    terminal.show(tables(result), head(result))
    stem = f"{machine.slug(described['cpu'])}-{described['commit']}" if args.save else "latest"
    path = args.out / f"{stem}-rl.json"
    write(result, path)
    path.with_suffix(".md").write_text(markdown(result))
    print(f"written: {path} and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
