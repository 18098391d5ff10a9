"""The pair formats by name, and which one a source is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import EmbeddedSource, Pair, PairSource, Rejected, brought_by
from fdpo_fast.data.readers.folders import Folders
from fdpo_fast.data.readers.jsonl import METADATA, JSONRecords
from fdpo_fast.data.readers.latents import EncodedPairs
from fdpo_fast.data.readers.parquet import ParquetRows
from fdpo_fast.data.readers.pickapic import PickAPic

READERS: dict[str, Callable[[str, str], PairSource]] = {
    "pickapic": PickAPic,
    "folders": Folders,
    "jsonl": JSONRecords,
    "latents": EncodedPairs,
}


def open_source(data: Data) -> PairSource:
    """Open the reader of the configuration's data.

    Raises UserError where the source is in no known format, or has no row.
    """
    name = detect(data.source) if data.format == "auto" else data.format
    source = READERS[name](data.source, data.ties)
    if not len(source):
        raise UserError(f"data.source '{data.source}' has no row")
    return Spread(source, data.max_rows) if data.max_rows and data.max_rows < len(source) else source


def detect(source: str) -> str:
    """Name the format of a source by its files. Raises UserError where they are of none."""
    path = Path(source).expanduser()
    if (path / "w").is_dir() and (path / "l").is_dir():
        return "folders"
    if path.suffix in (".json", ".jsonl") or (path / METADATA).is_file():
        return "jsonl"
    try:
        return "latents" if "latents_0" in ParquetRows(source).names else "pickapic"
    except ValueError:
        if not path.is_dir() or list(path.rglob("*.parquet")):
            raise
    raise UserError(
        f"data.source '{source}' is in no known format: a folder has parquet files, the folders w and l, or {METADATA}"
    )


class Spread:
    """A part of a large source, in a few stretches evenly over it: the other rows are neither decoded nor encoded."""

    STRETCHES = 8

    def __init__(self, source: PairSource, rows: int) -> None:
        self.source, self.rows = source, rows
        self.embedded = brought_by(source)

    def __len__(self) -> int:
        return self.rows

    def identity(self) -> dict:
        """Return the number of rows, and the identity of the source that they are taken from."""
        return {"rows": self.rows, "of": self.source.identity()}

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop) of this part; their ids stay those that they have in the source."""
        for stretch in range(self.STRETCHES):
            first, end = (self.rows * at // self.STRETCHES for at in (stretch, stretch + 1))
            low, high = max(start, first), min(stop, end)
            shift = len(self.source) * stretch // self.STRETCHES - first
            if low < high:
                yield from self.source.read(low + shift, high + shift)

    def embeddings(self, start: int, stop: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield captions and embeddings of rows of the whole source, which ids follow from."""
        if isinstance(self.source, EmbeddedSource):
            yield from self.source.embeddings(start, stop)
