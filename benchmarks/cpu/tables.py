"""Tables of other kinds of run than grids of cells: products, and other engines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from benchmarks.common.tables import Table, threads_text
from benchmarks.common.timing import geometric_mean
from benchmarks.cpu import int8_engines
from benchmarks.cpu.engines import FAST, FAST_STORED
from benchmarks.cpu.products import OWN, PACKED

# Columns of FastLSTM's lanes in the comparison with other engines.
LANES = {
    "float32": {FAST: "FastLSTM", FAST_STORED: "bf16 W"},
    "int8": {int8_engines.FAST: "FastLSTM", int8_engines.FAST_WEIGHTS: "weights only"},
}


def judged(value: float, target: float | None) -> list[str]:
    """``["1.32", "1.3 met"]``, or ``["1.32", ""]`` where there is no target."""
    verdict = "" if target is None else f"{target:g} {'met' if value >= target else 'missed'}"
    return [f"{value:.2f}", verdict]


def present(rows: Sequence[dict], key: str) -> list[str]:
    """Names that are keys of ``row[key]`` in some row, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row.get(key, ())))


def notes_table(rows: Sequence[dict], place: str) -> list[Table]:
    """One line per engine and reason for which it is missing, with the number of such rows."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, reason in row.get("notes", {}).items():
            found[name, reason] = found.get((name, reason), 0) + 1
    if not found:
        return []
    lines = [[name, str(count), reason] for (name, reason), count in sorted(found.items())]
    return [("not there", ["engine", place, "why"], lines, [None] * len(lines))]


def product_tables(rows: Sequence[dict]) -> list[Table]:
    """One per dtype and thread count: GF/s of every engine, and its share of the peak."""
    made = []

    def config(row: dict) -> tuple[str, int]:
        return row["dtype"], row["threads"]

    for (dtype, threads), grouped in groupby(rows, config):
        group = list(grouped)
        names = present(group, "gflops")
        peak = next((row["peak_gflops"] for row in group if row["status"] == "ok"), None)
        lines, ratios = [], []
        for row in group:
            start = [f"{row['M']},{row['N']},{row['K']}", row["order"]]
            if row["status"] == "failed":
                lines.append([*start, *[""] * len(names), row["error"]])
                ratios.append(None)
                continue
            rates, shares = row["gflops"], row["shares"]
            cells = [f"{rates[n]:.1f} ({shares[n]:.0%})" if n in rates else "" for n in names]
            verdict = ""
            if row["target"] is not None:
                met = "met" if shares[PACKED] >= row["target"] else "missed"
                verdict = f"{row['target']:.0%} {met}"
            lines.append([*start, *cells, verdict])
            others = [rate for name, rate in rates.items() if name not in (OWN, PACKED)]
            ratios.append(rates[OWN] / max(others) if OWN in rates and others else 1.0)
        title = f"{dtype}, {threads_text(threads)}"
        title += f": GF/s (share of the peak, {peak:.0f})" if peak else ""
        made.append((title, ["M,N,K", "order", *names, f"target of {PACKED}"], lines, ratios))
    return [*made, *notes_table(rows, "products")]


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}" if seconds >= 1e-4 else f"{seconds * 1e6:.3g}"


def sizes(row: dict) -> str:
    return ",".join(str(row[key]) for key in "TNIH")


def with_interval(row: dict, lane: str) -> str:
    """``0.97 (0.93-1.02)``, or nothing where the lane is missing."""
    ratio = row["ratios"].get(lane)
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else ""


def peer_tables(rows: Sequence[dict], summary: Sequence[dict]) -> list[Table]:
    """One per thread count: us of every engine, and FastLSTM's ratio to the best of the others;
    with int8 weights their errors too."""
    made = []
    for (dtype, threads), grouped in groupby(rows, _config):
        group, lines, ratios = list(grouped), [], []
        names, lanes = present(group, "times"), LANES[dtype]
        for row in group:
            if row["status"] == "failed":
                lines.append([sizes(row), *[""] * (len(names) + 1), row["error"]])
                ratios.append(None)
                continue
            cells = [microseconds(row["times"][n]["median_s"]) if n in row["times"] else "" for n in names]
            lines.append([sizes(row), *cells, *(with_interval(row, lane) for lane in lanes)])
            ratios.append(row["ratios"][next(iter(lanes))]["ratio"])
        columns = [lanes.get(name, name) for name in names]
        header = ["T,N,I,H", *columns, *(f"{name}: ratio" for name in lanes.values())]
        made.append((f"us, {dtype}, infer, {threads_text(threads)}", header, lines, ratios))
        made += error_tables(group, lanes)
    return [*made, *notes_table(rows, "cells"), peer_summary_table(summary)]


def _config(row: dict) -> tuple[str, int]:
    return row["dtype"], row["threads"]


def error_tables(rows: Sequence[dict], lanes: dict[str, str]) -> list[Table]:
    """The errors of engines with int8 weights; none for others."""
    names = present(rows, "relative_errors")
    if not names:
        return []
    lines = []
    for row in rows:
        errors = row.get("relative_errors", {})
        lines.append([sizes(row), *(f"{errors[n]:.1e}" if n in errors else "" for n in names)])
    header = ["T,N,I,H", *(lanes.get(name, name) for name in names)]
    return [("largest error of the output / its largest number", header, lines, [None] * len(rows))]


def summarize_peers(rows: Sequence[dict]) -> list[dict[str, object]]:
    """One entry per thread count and kind of FastLSTM: cells, failures, geometric mean of the
    ratios to the best of the others, the least and where.
    """
    entries = []
    for (dtype, threads), grouped in groupby(rows, _config):
        group = list(grouped)
        for lane in LANES[dtype]:
            good = [row for row in group if lane in row["ratios"]]
            entry = {"threads": threads, "lane": lane, "cells": len(good)}
            entry["missing"] = len(group) - len(good)
            if good:
                worst = min(good, key=lambda row: row["ratios"][lane]["ratio"])
                found = [row["ratios"][lane]["ratio"] for row in good]
                entry |= {"geomean": geometric_mean(found), "least": min(found)}
                entry |= {"worst": sizes(worst), "worst_of": worst["ratios"][lane]["of"]}
            entries.append(entry)
    return entries


def peer_summary_table(summary: Sequence[dict]) -> Table:
    lines, ratios = [], []
    for entry in summary:
        found = [""] * 3
        if "geomean" in entry:
            figures = [f"{entry['geomean']:.2f}", f"{entry['least']:.2f}"]
            found = [*figures, f"{entry['worst']} ({entry['worst_of']})"]
        counted = str(entry["cells"])
        if entry["missing"]:
            counted += f" of {entry['cells'] + entry['missing']}"
        lines.append([entry["lane"], str(entry["threads"]), counted, *found])
        ratios.append(entry.get("geomean"))
    header = ["to the best of the others", "threads", "cells", "geomean", "least", "at T,N,I,H"]
    return "summary", header, lines, ratios
