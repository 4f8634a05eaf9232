"""Progress bars and tables on the terminal: by rich, as plain lines where it is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError:
    Console = None


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields advance(), to be called after each of `total` steps."""
    if Console is None:
        start = time.perf_counter()
        print(f"{label}: {total} steps of each model ...", end=" ", flush=True)
        yield lambda: None
        print(f"{time.perf_counter() - start:.1f} s")
        return
    description = TextColumn("{task.description}")
    steps = TextColumn("steps of each model")
    bar = Progress(description, BarColumn(), MofNCompleteColumn(), steps, TimeElapsedColumn())
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: the first column to the left, the others to the right."""
    print()
    if Console is None:
        print(title)
        lines = (header, *rows)
        widths = [max(len(row[column]) for row in lines) for column in range(len(header))]
        for row in (header, ["-" * width for width in widths], *rows):
            cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
        return
    grid = Table()
    for index, name in enumerate(header):
        grid.add_column(name, justify="right" if index else "left")
    for row in rows:
        grid.add_row(*row)
    console = Console()
    console.print(title, style="bold", highlight=False, markup=False)
    console.print(grid)
