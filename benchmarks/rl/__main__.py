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
from benchmarks.common.tables import Table, markdown_table, threads_text

WORDS = {"update": "updates", "training": "whole training"}


def tables(result: dict) -> list[Table]:
    """Seconds of all rounds by contender, and the ratios to the first of them."""
    lines, ratios = [], []
    for row in result["rows"]:
        names = list(row["times"])
        seconds = [f"{row['total_s'][name]:.2f}" for name in names]
        found = [row["ratios"][name] for name in names[1:]]
        bounds = [f"{r['ratio']:.2f} ({r['low']:.2f}-{r['high']:.2f})" for r in found]
        same = "yes" if all(row["same_rewards"].values()) else "no"
        lines.append([f"{WORDS[row['part']]}, H = {row['H']}", *seconds, *bounds, same])
        ratios.append(found[-1]["ratio"])
    header = ["", *(f"{name}, s" for name in names)]
    header += [f"{name}, ratio" for name in names[1:]] + ["same rewards"]
    row = result["rows"][0]
    title = (
        f"RecurrentPPO, CartPole without velocities, {row['n_envs']} environments x "
        f"{row['n_steps']} steps, {row['times'][names[0]]['samples']} rollouts, "
        f"{threads_text(row['threads'])}"
    )
    return [(title, header, lines, ratios)]


def head(result: dict) -> list[str]:
    made = result["machine"]
    return [
        f"{made['cpu']}, {made['cores']} cores, torch {made['torch']}, sb3-contrib "
        f"{made['sb3_contrib']}, commit {made['commit']}, {result['settings']['date']}",
        "Seconds are sums over the rollouts. A ratio is the median over rollouts, in each of which "
        "all took a turn; in brackets the median's 95 % interval.",
    ]


def markdown(result: dict) -> str:
    return (
        "\n\n".join(["# Recurrent PPO", *head(result), *map(markdown_table, tables(result))]) + "\n"
    )


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
