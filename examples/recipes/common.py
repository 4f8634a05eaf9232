"""Runs two implementations of the same work in turns, and prints their times and difference."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import fastlstm

ROUNDS = 9


@dataclass
class Outcome:
    """The last results of both implementations, and the seconds of each round."""

    results: tuple[torch.Tensor, torch.Tensor]
    seconds: tuple[list[float], list[float]]

    @property
    def ratios(self) -> list[float]:
        """How many times as long the first way took, round by round."""
        return [plain / fast for plain, fast in zip(*self.seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """Time of the first over that of the second: the median over rounds."""
        return statistics.median(self.ratios)

    @property
    def apart(self) -> float:
        """The largest difference between the results, relative to the largest result."""
        plain, fast = (result.double() for result in self.results)
        return float((plain - fast).abs().max() / plain.abs().max().clamp(min=1e-30))


def by_turns(
    plain: Callable[[], torch.Tensor],
    fast: Callable[[], torch.Tensor],
    rounds: int,
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Outcome:
    """Runs both, first once each untimed and then in turns, with the same seed each time.

    Args:
        plain, fast: do the work and return a result, the same except for rounding.
        around: makes the context of `fast`, which is not timed: a program enters it once.
    """
    ways, results, seconds = (plain, fast), [None, None], ([], [])
    for k in range(rounds + 1):
        for which in (0, 1) if k % 2 == 0 else (1, 0):
            torch.manual_seed(0)
            with around() if which else contextlib.nullcontext():
                start = time.perf_counter()
                results[which] = ways[which]().detach()
                took = time.perf_counter() - start
            if k:
                seconds[which].append(took)
    return Outcome((results[0], results[1]), seconds)


def patched_turns(work: Callable[[], torch.Tensor], rounds: int) -> Outcome:
    """`by_turns` of `work` as it is and under fastlstm.patch()."""
    return by_turns(work, work, rounds, fastlstm.patch)


def main(run: Callable[[bool, int], Outcome], what: str, argv: Sequence[str] | None = None) -> int:
    """The command line of a recipe; 1 where the library that it is for is not installed.

    Args:
        run: takes whether this is only a smoke test, and the number of rounds.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each ({ROUNDS})")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        outcome = run(args.smoke, 1 if args.smoke else args.rounds)
    except ModuleNotFoundError as error:
        print(f"{what}: needs {error.name}, which is not installed")
        return 1
    low, high = min(outcome.ratios), max(outcome.ratios)
    print(
        f"{what}: {outcome.ratio:.2f} times as fast as with nn.LSTM ({low:.2f} to {high:.2f} in "
        f"{len(outcome.ratios)} rounds); results {outcome.apart:.1e} apart"
    )
    return 0


@contextlib.contextmanager
def quiet_lightning():
    """Without Lightning's notes on the hardware, and its advice."""
    import logging
    import warnings

    names = ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


LIGHTNING = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
