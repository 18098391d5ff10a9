"""CSV files of results that are whole at any time."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Under a temporary name first, so that a reader finds the old file or the new one; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".csv.tmp")
    with partial.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    partial.replace(path)
