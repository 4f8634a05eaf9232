"""The README's picture: speed relative to nn.LSTM by number of rows and hidden units."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from statistics import geometric_mean

from benchmarks.cpu.plots import STYLES

TITLES = {"infer": "inference", "train": "training (forward + backward)"}


def points(result: dict, dtype: str, threads: int) -> dict[str, dict[int, dict[int, list[float]]]]:
    """The ratios of all T, by mode, then N, then H."""
    found: dict = {mode: {} for mode in TITLES}
    for row in result["rows"]:
        if (row["status"], row["dtype"], row["threads"]) == ("ok", dtype, threads):
            lines = found[row["mode"]].setdefault(row["N"], {})
            lines.setdefault(row["H"], []).append(row["ratio"])
    return found


def title(result: dict, dtype: str, threads: int) -> str:
    machine = result["machine"]
    count = f"{machine['cores']} cores, {threads} threads"
    return f"{machine['cpu']} ({machine['flags'][-1]}), {count}, {dtype}, torch {machine['torch']}"


def digest(result: dict, dtype: str, threads: int) -> str:
    """A digest of the drawn data, stored in the picture so that a test can detect an old one."""
    drawn = [points(result, dtype, threads), title(result, dtype, threads)]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


def save_overview(result: dict, dtype: str, threads: int, path: Path) -> None:
    """Write a PNG to ``path``: a panel per mode, a colour per N, a dot per cell.

    On white, which is legible on a dark page too; 830 pixels wide, as GitHub shows it, a point of
    the font is 1.4 pixels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    modes = points(result, dtype, threads)
    sizes = sorted({H for lines in modes.values() for line in lines.values() for H in line})
    figure, axes = pyplot.subplots(1, 2, figsize=(8.3, 4.1), sharey=True, layout="constrained")
    for axis, (mode, lines) in zip(axes, modes.items(), strict=True):
        axis.axhline(1, color="black", linewidth=1.8, zorder=1)
        for k, (N, line) in enumerate(sorted(lines.items())):
            colour, marker = STYLES[k % len(STYLES)]
            # A horizontal offset for each number of rows, so that equal ratios do not hide each
            # other.
            shift = 0.13 * (k - (len(lines) - 1) / 2)
            places = {H: sizes.index(H) + shift for H in sorted(line)}
            for H, place in places.items():
                axis.plot([place] * len(line[H]), line[H], marker, color=colour, ms=4, alpha=0.5)
            means = [geometric_mean(line[H]) for H in places]
            axis.plot(places.values(), means, color=colour, linewidth=1.8, marker=marker, ms=6, label=f"N = {N}")
        axis.set_title(TITLES[mode], fontsize=11)
        axis.set_xticks(range(len(sizes)), [str(H) for H in sizes])
        axis.set_xlabel("H (hidden units; inputs I = H)", fontsize=10)
        axis.set_yscale("log")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_yticks([0.5, 0.7, 1, 1.5, 2, 3])
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axis.grid(axis="y", color="0.9")
        axis.set_axisbelow(True)
    axes[0].set_ylabel("time of nn.LSTM / time of FastLSTM", fontsize=10)
    figure.suptitle(
        "Speed of FastLSTM beside torch.nn.LSTM, one layer (above 1×: FastLSTM is faster)\n"
        + title(result, dtype, threads),
        fontsize=10.5,
    )
    handles, texts = axes[0].get_legend_handles_labels()
    steps = sorted({row["T"] for row in result["rows"]})
    note = f"N: rows of the batch; small marks: T = {', '.join(map(str, steps))}; "
    note += "line: their geometric mean; 1×: nn.LSTM"
    figure.legend(handles, texts, title=note, loc="outside lower center", ncols=len(texts),
                  fontsize=10, title_fontsize=9.5, frameon=False)  # fmt: skip
    made_of = {"Description": digest(result, dtype, threads)}
    figure.savefig(path, dpi=200, facecolor="white", metadata=made_of)
    pyplot.close(figure)
