"""The picture of a run: the ratio of every cell, one panel per dtype and mode."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common.shapes import DTYPES
from benchmarks.common.tables import shape_text, threads_text

# Okabe and Ito's colours, distinct to colour-blind readers; the markers are distinct in print.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
PLACE_KEYS = ("N", "H", "T", "I")
# The axis shows at most this range of ratios; an interval that goes on beyond it is cut off.
WIDEST = 30.0


def save_plot(result: dict, path: Path) -> str | None:
    """Write a PNG of a speed result's ratios to ``path``.

    Gives None, or the reason why there is no picture.
    """
    rows = [row for row in result["rows"] if row["status"] == "ok"]
    if not rows:
        return "no cell has a ratio"
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    dtypes = [name for name in DTYPES if any(row["dtype"] == name for row in rows)]
    modes = sorted({row["mode"] for row in rows})
    shapes = {tuple(row[key] for key in PLACE_KEYS): shape_text(row) for row in rows}
    places = {shape: place for place, shape in enumerate(sorted(shapes, reverse=True))}
    targets = {(entry["dtype"], entry["mode"]): entry.get("target") for entry in result["summary"]}
    figure, axes = pyplot.subplots(
        len(dtypes),
        len(modes),
        figsize=(4.4 * len(modes) + 1.4, 1.7 + (0.6 + 0.2 * len(places)) * len(dtypes)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for dtype, line in zip(dtypes, axes, strict=True):
        for mode, axis in zip(modes, line, strict=True):
            axis.set_title(f"{dtype}, {mode}", fontsize=10)
            draw_panel(
                axis,
                [row for row in rows if (row["dtype"], row["mode"]) == (dtype, mode)],
                sorted({row["threads"] for row in rows}),
                places,
                targets.get((dtype, mode)),
            )
    axes[0][0].set_yticks(list(places.values()), [shapes[shape] for shape in places])
    axes[0][0].set_ylim(-0.7, len(places) - 0.3)
    set_ratio_axis(axes, rows, [value for value in targets.values() if value])
    describe(figure, axes, result, rows[0]["baseline"], rows[0]["candidate"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return None


def draw_panel(axis, rows: list[dict], threads: list[int], places: dict, target: float | None):
    """Dots with intervals, a colour and marker per thread count; lines at 1 and at ``target``."""
    for index, count in enumerate(threads):
        mine = [row for row in rows if row["threads"] == count]
        if not mine:
            continue
        colour, marker = STYLES[index % len(STYLES)]
        # A horizontal offset for each thread count, so that equal ratios do not hide each other.
        shift = 0.34 * (index - (len(threads) - 1) / 2) / max(len(threads) - 1, 1)
        axis.errorbar(
            [row["ratio"] for row in mine],
            [places[tuple(row[key] for key in PLACE_KEYS)] - shift for row in mine],
            xerr=[
                [row["ratio"] - row["low"] for row in mine],
                [row["high"] - row["ratio"] for row in mine],
            ],
            fmt=marker,
            color=colour,
            markersize=4.5,
            elinewidth=1,
            label=threads_text(count),
        )
    axis.axvline(1, color="black", linewidth=1, zorder=0)
    if target:
        style = {"color": "0.35", "linewidth": 1, "linestyle": "--", "zorder": 0}
        axis.axvline(target, label="target of the geometric mean", **style)
    axis.grid(axis="both", which="major", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)


def set_ratio_axis(axes, rows: list[dict], targets: list[float]) -> None:
    """One log axis for all panels that holds every dot, 1 and the targets, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    dots = [row["ratio"] for row in rows]
    low = min([0.8, *dots, *(row["low"] for row in rows if row["low"] > 1 / WIDEST)])
    high = max([1.25, *targets, *dots, *(row["high"] for row in rows if row["high"] < WIDEST)])
    axes[0][0].set_xscale("log")
    axes[0][0].set_xlim(low / 1.1, high * 1.1)
    subs = (1, 1.5, 2, 3, 5, 7) if high / low < 10 else (1, 2, 5)
    axes[0][0].xaxis.set_major_locator(LogLocator(subs=subs))
    axes[0][0].xaxis.set_minor_locator(NullLocator())
    axes[0][0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def describe(figure, axes, result: dict, base: str, other: str) -> None:
    """Axis labels, and the title with the legend under it."""
    machine = result["machine"]
    figure.supylabel("T,N,H", fontsize=9)
    figure.supxlabel(
        f"time of {base} / time of {other}: median of the rounds, 95 % interval\nright of 1, {other} is faster",
        fontsize=9,
    )
    handles = {}
    for axis in axes.flat:
        drawn, texts = axis.get_legend_handles_labels()
        handles |= zip(texts, drawn, strict=True)
    texts = sorted(handles, key=lambda text: ("thread" not in text, len(text), text))
    variant = result["settings"]["variant"]
    figure.legend(
        [handles[text] for text in texts],
        texts,
        title=f"{other} against {base}{'' if variant == 'plain' else f', {variant}'}\n"
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}",
        title_fontsize=10,
        loc="outside upper center",
        ncols=len(texts),
        fontsize=8,
        frameon=False,
    )
