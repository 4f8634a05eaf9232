"""What a GPU run leaves: one results file (``benchmarks.common.schema``, kind ``gpu``), its
tables in Markdown, its picture, all made from the journal.
"""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import machine, terminal
from benchmarks.common.schema import SCHEMA, validate
from benchmarks.common.schema import write as write_json
from benchmarks.common.tables import shape_text
from benchmarks.common.timing import geometric_mean
from benchmarks.gpu import heatmap, suite, tables
from benchmarks.gpu.journal import SOURCES, Journal, digest

LOG_CHARACTERS = 200_000


def collect(journal: Journal, wall: float, commit: str | None = None) -> dict[str, object]:
    """The results file's content."""
    sessions = journal.records("session")
    described = dict(sessions[-1]["machine"])
    described["commit"] = commit or named_commit(journal, described["commit"])
    rows = [record["row"] for record in journal.latest("row").values()]
    rows.sort(key=tables.place)
    tests = suite.results(journal)
    result = {
        "schema": SCHEMA,
        "kind": "gpu",
        "machine": described,
        "settings": {
            "date": datetime.date.today().isoformat(),
            "dry_run": journal.stamp.endswith("|dry"),
            "stamp": journal.stamp,
            "sessions": len(sessions),
            "wall_s": wall,
        },
        "rates": {key: record["rates"] for key, record in journal.latest("rates").items()},
        "rows": rows,
        "summary": summarize(rows),
        "parts": {k: kept(r) for k, r in journal.latest("part").items()},
        "build": {k: kept(r) for k, r in journal.latest("build").items()},
        "tests": tests,
        "probe": [kept(r) for r in journal.latest("probe").values()],
        "verdicts": {k: r["passes"] for k, r in journal.latest("verdict").items()},
        "families": [kept(r) for r in journal.latest("forced").values()],
        "host": [kept(r) for r in journal.latest("host").values()],
        "sanitizer": [kept(r) for r in journal.latest("sanitizer").values()],
        "broken": [kept(r) | {"key": r["key"]} for r in journal.records("broken")],
        "profile": [kept(r) for r in journal.latest("profile").values()],
        "notes": [kept(r) | {"key": r["key"]} for r in journal.records("note")],
    }
    validate(result)
    return result


def kept(record: dict) -> dict:
    """A record without what the journal adds."""
    return {k: v for k, v in record.items() if k not in ("kind", "key", "stamp", "at")}


def named_commit(journal: Journal, commit: str) -> str:
    """The commit that was measured. A machine without git does not know it; where the sources here
    are the ones that ran there, it is the commit here.
    """
    given = os.environ.get("FASTLSTM_COMMIT")
    if given:
        return given
    same = journal.stamp.split("|")[0] == digest(SOURCES)
    return machine.commit() if commit == "unknown" and same else commit


def summarize(rows: list[dict]) -> list[dict[str, object]]:
    """One entry per (part of the grid, dtype, mode, lane): cells, geometric mean of the ratios, the
    least and its shape, the share of the floor.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        for lane in row["ratios"]:
            groups.setdefault((tables.kind_of(row), row["dtype"], row["mode"], lane), []).append(row)
    entries = []
    for (kind, dtype, mode, lane), group in sorted(groups.items(), key=lambda item: str(item[0])):
        ratios = [row["ratios"][lane]["ratio"] for row in group]
        worst = min(group, key=lambda row: row["ratios"][lane]["ratio"])
        entries.append(
            {
                "kind": kind,
                "dtype": dtype,
                "mode": mode,
                "lane": lane,
                "of": group[0]["ratios"][lane]["of"],
                "cells": len(group),
                "geomean": geometric_mean(ratios),
                "least": min(ratios),
                "worst": shape_text(worst),
                "floor_share": geometric_mean([row["floor_share"][lane] for row in group]),
            }
        )
    return entries


def stem(result: dict) -> str:
    """File name without its ending: ``<gpu>-<commit>``, or one that says that nothing was
    measured.
    """
    if result["settings"]["dry_run"]:
        return "dry-run"
    described = result["machine"]
    return f"{machine.slug(described['gpu'])}-{described['commit']}"


def gather_logs(folder: Path, target: Path) -> None:
    """All logs in one file, of each its end: there may be a limit on files to take home."""
    texts = []
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.*")):
        text = path.read_text(errors="replace")[-LOG_CHARACTERS:]
        texts.append(f"===== {path.name}\n{text}")
    target.write_text("\n".join(texts) + "\n")


def stream_logs(folder: Path, target: Path, seconds: float = 5.0) -> Callable[[], None]:
    """Gather the logs again and again from now on: a run that is killed leaves them. Returns what
    gathers them for the last time."""
    done = threading.Event()

    def gather() -> None:
        while not done.wait(seconds):
            gather_logs(folder, target)

    thread = threading.Thread(target=gather, daemon=True)
    thread.start()

    def finish() -> None:
        done.set()
        thread.join()
        gather_logs(folder, target)

    return finish


def write(journal: Journal, folder: Path, wall: float, commit: str | None = None) -> Path:
    """Write the three files and show the summary; gives the path of the results file."""
    result = collect(journal, wall, commit)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem(result)}.json"
    write_json(result, path)
    path.with_suffix(".md").write_text(tables.markdown(result))
    reason = heatmap.save(result, path.with_suffix(".png"))
    if reason:
        terminal.warn(f"no picture: {reason}")
    terminal.show(tables.short(result))
    print(f"written: {path.with_suffix('')}.{{json,md{'' if reason else ',png'}}}")
    return path
