"""The journal of a GPU run: a line of JSON for everything that happened, written at once.

A run that is killed loses what it was doing, and no more. Each line has a ``kind``, a ``key`` and
the ``stamp`` of what it was measured on: the kernels' sources, the GPU, torch. Lines of another
stamp are kept but not used.

Kinds: ``session`` (what the machine is), ``rates``, ``mark`` (this cell or test begins), ``row`` (a
finished cell), ``baseline`` (what of it is nn.LSTM's, which outlives a change of our sources),
``broken`` (this contender of a cell crashed or hung its process), ``test``, ``probe``, ``verdict``,
``forced``, ``host``, ``sanitizer``, ``profile``, ``part`` (how a part ended).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from benchmarks.common.machine import ROOT

VARIABLE = "FASTLSTM_GPU_JOURNAL"
SOURCES = ("fastlstm/**/*.py", "csrc/**/*.[ch]*", "setup.py")


class Journal:
    """Appends to ``path``, and to ``mirror`` where one is given; reads ``path`` alone."""

    def __init__(self, path: Path, stamp: str, mirror: Path | None = None) -> None:
        self.path, self.stamp, self.mirror = Path(path), stamp, mirror and Path(mirror)
        for each in filter(None, (self.path, self.mirror)):
            each.parent.mkdir(parents=True, exist_ok=True)

    def merge(self) -> None:
        """Give each of the two files the lines that only the other has, in their order. For the
        first process alone, before it starts others.
        """
        if self.mirror is None:
            return
        here, there = (read_lines(p) for p in (self.path, self.mirror))
        write_lines(self.path, [line for line in there if line not in set(here)])
        write_lines(self.mirror, [line for line in here if line not in set(there)])

    def append(self, kind: str, key: str, **data: object) -> None:
        record = {"kind": kind, "key": key, "stamp": self.stamp, "at": round(time.time(), 2)}
        line = json.dumps(record | data)
        for path in (self.path, self.mirror):
            if path is not None:
                write_lines(path, [line])

    def mark(self, key: str, contender: str = "") -> None:
        """Say that ``contender`` of the cell ``key`` is about to run: if the process does not
        survive it, the next one knows whom to leave out.
        """
        self.append("mark", key, contender=contender)

    def records(self, kind: str | None = None) -> list[dict]:
        every = read_records(self.path, kind)
        return [r for r in every if r.get("stamp") == self.stamp and kind in (None, r.get("kind"))]

    def latest(self, kind: str) -> dict[str, dict]:
        """The last record of this kind for each key."""
        return {record["key"]: record for record in self.records(kind)}

    def lasting(self, kind: str) -> dict[str, dict]:
        """As `latest`, also of other kernels' sources: of what only GPU and libraries decide."""
        every, wanted = read_records(self.path, kind), lasting_part(self.stamp)
        return {r["key"]: r for r in every if r.get("kind") == kind and lasting_part(r["stamp"]) == wanted}

    def in_progress(self, prefix: str) -> dict | None:
        """The last mark under ``prefix`` if nothing has been recorded of its key since."""
        last = None
        for record in self.records():
            if record["kind"] == "mark" and record["key"].startswith(prefix):
                last = record
            elif last is not None and record["key"] == last["key"]:
                last = None
        return last

    def environment(self) -> dict[str, str]:
        """What a child process needs to write into this journal."""
        given = {"path": str(self.path), "stamp": self.stamp}
        if self.mirror is not None:
            given["mirror"] = str(self.mirror)
        return {VARIABLE: json.dumps(given)}

    @classmethod
    def from_environment(cls) -> Journal | None:
        given = os.environ.get(VARIABLE)
        return cls(**json.loads(given)) if given else None


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def read_records(path: Path, word: str | None) -> Iterator[dict]:
    """The records of the lines that have this word in quotes; of all lines for None."""
    for line in read_lines(path):
        if word is None or f'"{word}"' in line:
            # Not of the line that was being written when the run was killed.
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Append each line by one write, so that several processes may do it at once."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for line in lines:
            os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def last_stamp(path: Path) -> str | None:
    """The stamp of the newest session in the journal, for a report on another machine."""
    found = [r["stamp"] for r in read_records(path, "session") if "stamp" in r]
    return found[-1] if found else None


def digest(patterns: Iterable[str]) -> str:
    """Eight digits that change with the content of the files that match, relative to the
    repository."""
    total = hashlib.sha256()
    for path in sorted({p for pattern in patterns for p in ROOT.glob(pattern) if p.is_file()}):
        if path.suffix not in (".so", ".pyc", ".o"):
            total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()[:8]


def lasting_part(stamp: str) -> str:
    """A stamp without the kernels' sources."""
    return stamp.partition("|")[2]


def stamp_of(described: Mapping[str, object], dry: bool) -> str:
    """What decides whether an older result still counts."""
    named = (str(described.get(k)) for k in ("gpu", "torch", "cuda", "cudnn"))
    parts = [digest(SOURCES), *named]
    return "|".join([*parts, "dry"] if dry else parts)
