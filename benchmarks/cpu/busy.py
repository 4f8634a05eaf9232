"""Busy processes, to measure calls while the cores have other work."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

_LOOP = "while True: pass"


@contextlib.contextmanager
def processes(count: int) -> Iterator[None]:
    """Runs `count` processes during the block, each of which uses a core fully."""
    running = [subprocess.Popen([sys.executable, "-S", "-c", _LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
