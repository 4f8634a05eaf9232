"""Progress and tables on the terminal: rich where it is installed, plain lines where it is not."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

from benchmarks.common.tables import Table

try:
    import rich.box
    import rich.console
    import rich.progress
    import rich.table
    import rich.text
except ImportError:
    rich = None

LOST, CLOSE, WON = 0.9, 1.0, 1.3


def colour(ratio: float | None) -> str:
    """Red under 0.9, yellow under 1, green over 1.3, bold red for a line without a ratio."""
    if ratio is None:
        return "bold red"
    if ratio < LOST:
        return "red"
    if ratio < CLOSE:
        return "yellow"
    return "green" if ratio > WON else ""


def show(tables: Sequence[Table], head: Sequence[str] = ()) -> None:
    """Print the paragraphs of `report.head` and the tables of `report.tables`."""
    if rich is None:
        print("\n\n".join([*head, *map(plain, tables)]))
        return
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=120)
    for text in head:
        console.print(text, "", sep="\n", markup=False, highlight=False)
    for title, header, lines, ratios in tables:
        table = rich.table.Table(title=title, title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD)
        for index, name in enumerate(header):
            table.add_column(
                name,
                justify="right" if 0 < index < len(header) - 1 else "left",
                no_wrap=index < len(header) - 1,
            )
        for line, ratio in zip(lines, ratios, strict=True):
            # Text and not a string: an error message may hold what rich would read as markup.
            table.add_row(*map(rich.text.Text, line), style=colour(ratio))
        console.print(table)


def plain(table: Table) -> str:
    """A table as aligned text: title, header, lines."""
    title, header, lines, _ = table
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    rows = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *lines)
    ]
    return "\n".join([title, *rows])


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Within the block, call the given function with a short text after each of ``total`` cells."""
    if rich is None or not sys.stderr.isatty():
        done = 0

        def advance(text: str) -> None:
            nonlocal done
            done += 1
            print(f"[{done}/{total}] {text}", file=sys.stderr, flush=True)

        yield advance
        return
    columns = (
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
        task = bar.add_task("building", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)
