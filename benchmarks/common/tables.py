"""Tables as lines of text, in Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

Table = tuple[str, list[str], list[list[str]], list[float | None]]  # title, header, lines, ratio that colours each line


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def shape_text(row: dict) -> str:
    """``64,16,128`` for T, N, H, with I where it differs from H; as ``--shapes`` takes it."""
    sizes = [row["T"], row["N"], row["H"]] if row["I"] == row["H"] else [row["T"], row["N"], row["I"], row["H"]]
    return ",".join(map(str, sizes))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def markdown_table(table: Table) -> str:
    title, header, lines, _ = table
    rows = [markdown_line(line) for line in (header, ["---"] * len(header), *lines)]
    return "\n".join([f"**{title}**", "", *rows])


def markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
