"""The picture of a GPU run: the ratio over H and N, a panel for each dtype, mode, T and lane."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common.precision import PRECISIONS
from benchmarks.common.stand_ins import BACKENDS
from benchmarks.gpu.contenders import GRAPH
from benchmarks.gpu.tables import NAMES

# The colours end at these ratios: 4 times slower, 4 times faster.
WIDEST = 4.0


def save(result: dict, path: Path) -> str | None:
    """Write a PNG of the grid's ratios to ``path``; gives None, or why there is no picture."""
    rows = [row for row in result["rows"] if row["part"].startswith("bench")]
    backend = shown_backend(rows)
    if backend is None:
        return "no cell of the grid has a ratio"
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import colormaps, colors, pyplot

    lines = [
        (dtype, mode)
        for dtype in PRECISIONS
        for mode in ("infer", "train")
        if any((row["dtype"], row["mode"]) == (dtype, mode) for row in rows)
    ]
    Ts, Ns, Hs = (sorted({row[key] for row in rows}) for key in "TNH")
    columns = [(T, end) for end in ("", GRAPH) for T in Ts]
    figure, axes = pyplot.subplots(
        len(lines),
        len(columns),
        figsize=(1.2 + 0.42 * len(Hs) * len(columns), 1.6 + (0.5 + 0.28 * len(Ns)) * len(lines)),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    norm = colors.LogNorm(1 / WIDEST, WIDEST)
    colours = colormaps["RdBu"].with_extremes(bad="0.92")
    image = None
    for (dtype, mode), line in zip(lines, axes, strict=True):
        for (T, end), axis in zip(columns, line, strict=True):
            chosen = {
                (row["N"], row["H"]): row["ratios"][f"{backend}{end}"]["ratio"]
                for row in rows
                if (row["dtype"], row["mode"], row["T"]) == (dtype, mode, T) and f"{backend}{end}" in row["ratios"]
            }
            image = draw(axis, chosen, Ns, Hs, norm, colours)
            if axis in axes[0]:
                axis.set_title(f"T = {T}, {'graph' if end else 'eager'}", fontsize=9)
        line[0].set_ylabel(f"{NAMES[dtype]}, {mode}\nN", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("H", fontsize=8)
    describe(figure, axes, image, result, backend)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return None


def shown_backend(rows: list[dict]) -> str | None:
    """The first backend of "auto"'s order that has ratios."""
    return next((b for b in BACKENDS if any(b in row["ratios"] for row in rows)), None)


def draw(axis, chosen: dict, Ns: list[int], Hs: list[int], norm, colours):
    """One panel: N downwards, H to the right, the ratio in each cell."""
    import numpy

    values = numpy.full((len(Ns), len(Hs)), numpy.nan)
    for (N, H), ratio in chosen.items():
        values[Ns.index(N), Hs.index(H)] = ratio
    image = axis.imshow(values, norm=norm, cmap=colours, aspect="auto")
    for (row, column), ratio in numpy.ndenumerate(values):
        if numpy.isfinite(ratio):
            strong = not 0.45 < ratio < 2.2
            text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
            ink = "white" if strong else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=6.5, color=ink)
    axis.set_xticks(range(len(Hs)), Hs, fontsize=7, rotation=45)
    axis.set_yticks(range(len(Ns)), Ns, fontsize=7)
    axis.tick_params(length=0)
    return image


def describe(figure, axes, image, result: dict, backend: str) -> None:
    machine = result["machine"]
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=40, extend="both")
    ticks = (0.25, 0.5, 1, 2, 4)
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("time of nn.LSTM / time of FastLSTM", fontsize=8)
    warning = "DRY RUN, nothing was measured. " if result["settings"]["dry_run"] else ""
    figure.suptitle(
        f"{warning}FastLSTM (backend {backend}) against nn.LSTM, blue: FastLSTM is faster\n"
        f"{machine['gpu']}, torch {machine['torch']}, commit {machine['commit']}",
        fontsize=10,
    )
