"""The table of what was measured."""

from __future__ import annotations

from benchmarks.common.programs import interval
from benchmarks.common.tables import Table, threads_text

KIND = "recipes"
TITLE = "Recipes"
MEANING = (
    "Seconds are medians of a round, in which both took a turn in one process. A ratio is the median "
    "over rounds; in brackets its 95 % interval. Results are compared by their largest difference, of "
    "the largest result."
)


def tables(result: dict) -> list[Table]:
    """A line for each recipe: seconds of a round, and the ratio."""
    lines, ratios = [], []
    for row in result["rows"]:
        medians = [f"{times['median_s']:.3g}" for times in row["times"].values()]
        (found,) = row["ratios"].values()
        lines.append([row["what"], row["version"], *medians, interval(found), f"{row['apart']:.0e}"])
        ratios.append(found["ratio"])
    row = result["rows"][0]
    header = ["program", "version", *(f"{name}, s" for name in row["times"])]
    header += ["ratio", "results apart"]
    rounds = sorted({times["samples"] for row in result["rows"] for times in row["times"].values()})
    count = " to ".join(map(str, dict.fromkeys((rounds[0], rounds[-1]))))
    title = f"Recipes, rounds: {count}, {threads_text(row['threads'])}"
    return [(title, header, lines, ratios)]
