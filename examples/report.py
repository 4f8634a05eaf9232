"""What a finished program prints: its table and notes, and one line in the summary."""

from __future__ import annotations

from collections.abc import Sequence

from examples.common import BOTH, FAST, PLAIN, Result
from examples.console import table


def print_result(result: Result) -> None:
    """Losses of both and their difference, scores, times and their ratio; then the notes."""
    comparison, scores = result.comparison, result.scores
    differences, show = comparison.differences, result.score_format

    def losses(index: int) -> list[str]:
        both = [f"{comparison.losses[name][index]:.6f}" for name in BOTH]
        return [*both, f"{differences[index]:.1e}"]

    apart = f"{abs(scores[PLAIN] - scores[FAST]):.1e}"
    rows = [
        ["loss, first step", *losses(0)],
        ["loss, last step", *losses(-1)],
        [f"loss, any of {comparison.steps} steps", "", "", f"{comparison.max_difference:.1e}"],
        [result.score_name, *(show(scores[name]) for name in BOTH), apart],
        ["training time", *_seconds(result), f"ratio {comparison.ratio:.2f}"],
    ]
    if result.baseline:
        label, value = result.baseline
        rows.insert(4, [label, show(value), "", ""])
    table(result.title, ["", *BOTH, "|difference|"], rows)
    for note in result.notes:
        print(f"- {note}")
    print()


def print_summary(results: Sequence[Result]) -> None:
    """All programs, one line each."""
    header = ["", "loss", f"score {PLAIN}", FAST, f"time {PLAIN}", FAST, "ratio"]
    rows = []
    for result in results:
        scores = [result.score_format(result.scores[name]) for name in BOTH]
        apart = f"{result.comparison.max_difference:.0e}"
        rows.append([result.name, apart, *scores, *_seconds(result), f"{result.comparison.ratio:.2f}"])
    table("All: largest difference of the losses, scores, training times", header, rows)


def _seconds(result: Result) -> list[str]:
    return [f"{result.comparison.seconds[name]:.1f} s" for name in BOTH]
