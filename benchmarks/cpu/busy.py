"""Other work on the cores, for measuring what a call costs beside it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

_LOOP = "while True: pass"


@contextlib.contextmanager
def processes(count: int) -> Iterator[None]:
    """Keep `count` processes busy while the block runs, each of a core's worth."""
    running = [subprocess.Popen([sys.executable, "-S", "-c", _LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
