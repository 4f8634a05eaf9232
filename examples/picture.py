"""One picture of all programs that ran: a row each, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

from examples.common import BOTH, FAST, PLAIN, MissingPackage, Result

COLORS = {PLAIN: "tab:blue", FAST: "tab:red"}


def save(results: Sequence[Result], path: str, caption: str) -> None:
    """Writes the picture to path (its ending chooses the format).

    A row has: both loss curves; their difference; the program's own panel; both times.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackage("the picture", "matplotlib") from None
    figure = Figure(figsize=(17, 3.5 * len(results) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever backend the user's matplotlib has
    figure.suptitle(caption, fontsize=12)
    rows = figure.subfigures(len(results), 1, squeeze=False)[:, 0]
    for result, row in zip(results, rows, strict=True):
        row.suptitle(result.title, fontsize=11, weight="bold", x=0.01, ha="left")
        loss, difference, own, seconds = row.subplots(1, 4, width_ratios=[3, 2.2, 4.6, 1.5])
        draw_losses(loss, result)
        draw_difference(difference, result)
        result.draw(own)
        draw_seconds(seconds, result)
    figure.savefig(path, dpi=110)


def draw_losses(ax, result: Result) -> None:
    losses = result.comparison.losses
    ax.plot(losses[PLAIN], color=COLORS[PLAIN], linewidth=3.5, alpha=0.45, label=PLAIN)
    ax.plot(losses[FAST], color=COLORS[FAST], linewidth=0.9, label=FAST)
    ax.set_title("training loss")
    ax.set_xlabel("step")
    ax.legend(fontsize=8)


def draw_difference(ax, result: Result) -> None:
    ax.plot(result.comparison.differences, ".", color="0.3", markersize=2.5)
    # Linear below one float32 rounding: an exact 0 has no place on a logarithmic axis.
    ax.set_yscale("symlog", linthresh=1e-7)
    ax.set_ylim(0, max(1e-4, 3 * result.comparison.max_difference))
    ax.set_title("|difference of the losses|")
    ax.set_xlabel("step")


def draw_seconds(ax, result: Result) -> None:
    seconds = result.comparison.seconds
    bars = ax.bar(BOTH, [seconds[n] for n in BOTH], color=[COLORS[n] for n in BOTH], alpha=0.75)
    ax.bar_label(bars, fmt="%.1f s", fontsize=9)
    ax.margins(y=0.15)
    ax.set_title(f"training time: {result.comparison.ratio:.2f} x")
    ax.set_yticks([])
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)
