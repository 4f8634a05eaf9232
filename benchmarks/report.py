"""What a run leaves to be read: the summary, and the tables for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import errors
from benchmarks.memory import TARGET_RATIO
from benchmarks.sweep import CANDIDATE, by_config, threads_text
from benchmarks.timing import geometric_mean

WORST_ALLOWED = 0.9
TARGETS = {("float32", "infer"): 1.1, ("float32", "train"): 1.3, ("bfloat16", "train"): 2.0}


def summarize(rows: Sequence[dict]) -> list[dict[str, object]]:
    """One entry per (dtype, mode, threads): cells, failures, geometric mean, least and worst shape,
    and beside them the targets, which FastLSTM has on the core shapes alone.
    """
    entries = []
    for (dtype, mode, threads), group in by_config(rows):
        good = [row for row in group if row["status"] == "ok"]
        entry = {
            "dtype": dtype,
            "mode": mode,
            "threads": threads,
            "cells": len(group),
            "failed": len(group) - len(good),
        }
        if good:
            worst = min(good, key=lambda row: row["ratio"])
            core = worst["variant"] == "plain" and worst["candidate"] == CANDIDATE
            entry |= {
                "geomean": geometric_mean([row["ratio"] for row in good]),
                "least": worst["ratio"],
                "worst": shape_text(worst),
                "target": TARGETS.get((dtype, mode)) if core else None,
                "least_allowed": WORST_ALLOWED if core and dtype == "float32" else None,
            }
        entries.append(entry)
    return entries


def shape_text(row: dict) -> str:
    """``64,16,128`` for T, N, H, with I where it differs from H; as ``--shapes`` takes it."""
    sizes = (
        [row["T"], row["N"], row["H"]]
        if row["I"] == row["H"]
        else [row["T"], row["N"], row["I"], row["H"]]
    )
    return ",".join(map(str, sizes))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def judged(value: float, target: float | None) -> list[str]:
    """``["1.32", "1.3 met"]``, or ``["1.32", ""]`` where there is no target."""
    verdict = "" if target is None else f"{target:g} {'met' if value >= target else 'missed'}"
    return [f"{value:.2f}", verdict]


Table = tuple[
    str, list[str], list[list[str]], list[float | None]
]  # title, header, lines, ratio that colours each line


def tables(result: dict) -> list[Table]:
    """The tables of a run as text: one per (dtype, mode, threads), then the summary; or the memory
    table alone.
    """
    if result["kind"] == "memory":
        return [memory_table(result["rows"])]
    if result["kind"] == "errors":
        return [error_table(result["rows"])]
    made = []
    for (dtype, mode, threads), group in by_config(result["rows"]):
        lines = []
        first = next((row for row in group if row["status"] == "ok"), None)
        names = (first["baseline"], first["candidate"]) if first else ("baseline", "candidate")
        for row in group:
            if row["status"] == "failed":
                lines.append([shape_text(row), "failed", "", "", "", "", row["error"]])
                continue
            base, other = (row["times"][row[who]] for who in ("baseline", "candidate"))
            lines.append(
                [
                    shape_text(row),
                    milliseconds(base["median_s"]),
                    milliseconds(other["median_s"]),
                    f"{row['ratio']:.2f}",
                    f"{row['low']:.2f}-{row['high']:.2f}",
                    f"{row['floor_share']:.0%}",
                    str(other["samples"]),
                ]
            )
        header = [
            "T,N,H",
            f"{names[0]} ms",
            f"{names[1]} ms",
            "ratio",
            "95 % paired",
            "of floor",
            "reps",
        ]
        title = f"{dtype}, {mode}, {threads_text(threads)}"
        variant = group[0]["variant"]
        made.append(
            (
                title if variant == "plain" else f"{variant}: {title}",
                header,
                lines,
                [row.get("ratio") for row in group],
            )
        )
    return [*made, *means_by_rows(result["rows"]), summary_table(result["summary"])]


def means_by_rows(rows: Sequence[dict]) -> list[Table]:
    """Geometric means for each number of rows, where a run has several numbers of them."""
    counts = sorted({row["N"] for row in rows})
    if len(counts) < 2:
        return []
    lines = []
    for (dtype, mode, threads), group in by_config(rows):
        means = []
        for N in counts:
            found = [row["ratio"] for row in group if row["N"] == N and row["status"] == "ok"]
            means.append(f"{geometric_mean(found):.2f} ({len(found)})" if found else "")
        lines.append([dtype, mode, str(threads), *means])
    header = ["dtype", "mode", "threads", *(f"N = {N}" for N in counts)]
    return [("geometric mean of the ratios (cells)", header, lines, [None] * len(lines))]


def summary_table(summary: Sequence[dict]) -> Table:
    lines, ratios = [], []
    for entry in summary:
        config = [entry["dtype"], entry["mode"], str(entry["threads"])]
        if "geomean" not in entry:
            lines.append([*config, f"0 of {entry['cells']}", "", "", "", "", ""])
            ratios.append(None)
            continue
        counted = (
            str(entry["cells"])
            if not entry["failed"]
            else f"{entry['cells'] - entry['failed']} of {entry['cells']}"
        )
        means = [
            *judged(entry["geomean"], entry["target"]),
            *judged(entry["least"], entry["least_allowed"]),
        ]
        lines.append([*config, counted, *means, entry["worst"]])
        ratios.append(entry["geomean"])
    header = [
        "dtype",
        "mode",
        "threads",
        "cells",
        "geomean",
        "target",
        "least",
        "target",
        "at T,N,H",
    ]
    return "summary", header, lines, ratios


def memory_table(rows: Sequence[dict]) -> Table:
    lines = []
    names = next(
        (list(row["growth_bytes"]) for row in rows if row["status"] == "ok"),
        ["nn.LSTM", "candidate"],
    )
    for row in rows:
        start = [row["dtype"], row["variant"], shape_text(row)]
        if row["status"] == "failed":
            lines.append([*start, "failed", "", row["error"]])
            continue
        verdict = "met" if row["ratio"] <= TARGET_RATIO else "missed"
        growth = [f"{value / 2**20:.0f}" for value in row["growth_bytes"].values()]
        lines.append([*start, *growth, f"{row['ratio']:.2f} (at most {TARGET_RATIO:g}: {verdict})"])
    # Less memory is better, so the inverse decides the colour.
    colours = [1 / row["ratio"] if row.get("ratio") else None for row in rows]
    header = ["dtype", "variant", "T,N,H", *(f"{name} MiB" for name in names), "ratio"]
    return "peak growth of one training step", header, lines, colours


def error_table(rows: Sequence[dict]) -> Table:
    header = ["dtype", "backend", "output, h_n, c_n", "gradients"]
    lines = [list(line) for line in errors.table_rows(rows)]
    # Coloured only where there is no figure.
    colours = [1.0 if line[-1] else None for line in lines]
    return "largest relative error", header, lines, colours


def markdown(result: dict) -> str:
    """The tables for a README or a note, under one line on the machine."""
    machine = result["machine"]
    meaning = {
        "speed": "ratio = baseline's median / candidate's median, so above 1 the candidate is "
        "faster",
        "memory": "ratio = candidate's growth / nn.LSTM's, so below 1 the candidate takes less",
        "errors": "error = max |value - oracle| / max |oracle| with the oracle in float64, in "
        "brackets in units u of the dtype's roundoff",
    }[result["kind"]]
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}), "
        f"torch {machine['torch']}, commit {machine['commit']}, {result['settings']['date']}; "
        f"{meaning}",
        *conditions(result),
    ]
    return "\n\n".join([*parts, *map(markdown_table, tables(result))]) + "\n"


def conditions(result: dict) -> list[str]:
    """Lines on what the run was kept to, and what ran beside it."""
    lines, settings = [], result["settings"]
    limits = result["machine"].get("limits")
    if limits:
        lines.append("Limited by " + ", ".join(f"{k}={v}" for k, v in sorted(limits.items())) + ".")
    if settings.get("busy"):
        lines.append(f"Other processes that kept a core busy meanwhile: {settings['busy']}.")
    if settings.get("left_out"):
        lines.append(
            f"Left out: {settings['left_out']} cells, of which one call of nn.LSTM was expected to "
            f"take more than {settings['longest']:g} s."
        )
    return lines


def markdown_table(table: Table) -> str:
    title, header, lines, _ = table
    body = [header, ["---"] * len(header), *lines]
    rows = [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in body
    ]
    return "\n".join([f"**{title}**", "", *rows])
