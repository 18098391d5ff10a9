"""Tables in Markdown, line by line, so that a long one can be printed while it grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def table(columns: Sequence[str], rows: Iterable[Iterable[object]], figures: int = 0) -> Iterator[str]:
    """Yield the lines of a table; its last `figures` columns are aligned to the right."""
    yield row(columns)
    yield row(["---"] * (len(columns) - figures) + ["---:"] * figures)
    yield from map(row, rows)


def row(cells: Iterable[object]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(cell: object) -> str:
    """Return a cell's words so that they stay in it."""
    return " ".join(str(cell).split()).replace("|", r"\|")
