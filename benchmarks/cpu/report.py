"""The report of a run: the summary, and the tables for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.common.tables import Table, markdown_table, milliseconds, shape_text, threads_text
from benchmarks.common.timing import geometric_mean
from benchmarks.cpu import errors
from benchmarks.cpu.memory import TARGET_RATIO
from benchmarks.cpu.sweep import CANDIDATE, by_config
from benchmarks.cpu.tables import judged, peer_tables, product_tables

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


def tables(result: dict) -> list[Table]:
    """The tables of a run as text: one per (dtype, mode, threads), then the summary; or those of
    another kind of run.
    """
    if result["kind"] == "memory":
        return [memory_table(result["rows"])]
    if result["kind"] == "errors":
        return [error_table(result["rows"])]
    if result["kind"] == "products":
        return product_tables(result["rows"])
    if result["kind"] == "peers":
        return peer_tables(result["rows"], result["summary"])
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
            "95 % interval",
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
            str(entry["cells"]) if not entry["failed"] else f"{entry['cells'] - entry['failed']} of {entry['cells']}"
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
    """`head` and the tables in Markdown."""
    return "\n\n".join([*head(result), *map(markdown_table, tables(result))]) + "\n"


def head(result: dict) -> list[str]:
    """Paragraphs: the machine, the meaning of the figures, the machine's rates, and the limits of
    the run.
    """
    machine = result["machine"]
    meaning = {
        "speed": "ratio = baseline's time / candidate's, the median over rounds in which both took "
        "a turn, with that median's 95 % interval, so above 1 the candidate is faster; times are "
        "medians",
        "memory": "ratio = candidate's growth / nn.LSTM's, so below 1 the candidate takes less",
        "errors": "error = max |value - oracle| / max |oracle| with the oracle in float64, in "
        "brackets in units u of the dtype's roundoff",
        "products": "GF/s at the median time, the right factor's packing included but where it is "
        "packed; N: a factor by rows, T: by columns",
        "peers": "us: the median over rounds of an engine's median in the round; ratio = time of "
        "the best of the others / FastLSTM's, the median over rounds with its 95 % interval, so "
        "above 1 FastLSTM is faster than all of them; bf16 W: with weight_dtype=torch.bfloat16; "
        "int8: with weight_dtype=torch.int8, weights only: and weight_only=True",
    }[result["kind"]]
    return [
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}), "
        f"torch {machine['torch']}, commit {machine['commit']}, {result['settings']['date']}; "
        f"{meaning}",
        *rate_lines(result["rates"]),
        *conditions(result),
    ]


def rate_lines(rates: dict) -> list[str]:
    """The cores' peak rates as one paragraph; none where nothing was measured."""
    if not rates.get("peaks"):
        return []
    parts = []
    for dtype in sorted({peak["dtype"] for peak in rates["peaks"]}, reverse=True):
        best = max((p for p in rates["peaks"] if p["dtype"] == dtype), key=lambda p: p["gflops"])
        found = [p for p in rates["peaks"] if (p["dtype"], p["with"]) == (dtype, best["with"])]
        counts = by_threads((p["threads"], f"{p['gflops']:.0f}") for p in found)
        parts.append(f"{dtype} by {best['with']} {counts} GF/s")
    for cache in dict.fromkeys(c["cache"] for c in rates["caches"]):
        found = [c for c in rates["caches"] if c["cache"] == cache]
        counts = by_threads((c["threads"], f"{c['gbytes_per_s']:.0f}") for c in found)
        parts.append(f"reading {cache} {counts} GB/s")
    text = f"The cores at most: {'; '.join(parts)}."
    if rates["unprobed"]:
        text += (
            f" The machine's own rates were not measured ({rates['unprobed']}): these are torch's, "
            "which a kernel may pass."
        )
    return [text]


def by_threads(values: Iterable[tuple[int, str]]) -> str:
    """``104 (1 thread), 207 (2 threads)``."""
    return ", ".join(f"{text} ({threads_text(count)})" for count, text in sorted(values))


def conditions(result: dict) -> list[str]:
    """Lines on the limits of the run, and on other processes during it."""
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
