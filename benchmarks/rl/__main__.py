"""Recurrent PPO of sb3-contrib: nn.LSTM, converted, and the fast policy: python -m benchmarks.rl"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks.common import machine, programs, terminal
from benchmarks.rl import report


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl", description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 256], metavar="H")
    parser.add_argument("--envs", type=int, default=8, help="environments (8)")
    parser.add_argument("--steps", type=int, default=128, help="steps of a rollout (128)")
    parser.add_argument("--rounds", type=int, default=8, help="rollouts of each contender (8)")
    parser.add_argument("--seed", type=int, default=0)
    args = programs.parsed(parser, argv, "envs", "steps", "rounds")
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
    path = programs.path_of(args, described, report.KIND)
    programs.leave(path, report, described, rows, started, seed=args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
