"""The pair formats by name, and which one a source is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import EmbeddedSource, LeftOut, Pair, PairSource, Rejected, Rules, brought_by
from fdpo_fast.data.readers.folders import Folders, folders_of_pairs
from fdpo_fast.data.readers.jsonl import METADATA, JSONRecords, files_of_records
from fdpo_fast.data.readers.latents import EncodedPairs
from fdpo_fast.data.readers.parquet import ParquetRows
from fdpo_fast.data.readers.pickapic import PickAPic
from fdpo_fast.data.readers.splits import ALL, hidden, local, walk

READERS: dict[str, Callable[[str, Rules], PairSource]] = {
    "pickapic": PickAPic,
    "folders": Folders,
    "jsonl": JSONRecords,
    "latents": EncodedPairs,
}


PARTS: dict[str, Callable[[Path], list[str]]] = {"folders": folders_of_pairs, "jsonl": files_of_records}
"""The formats of which a folder may hold several, as of splits, and what lists them by their names within it."""


def open_source(data: Data) -> PairSource:
    """Open the reader of the configuration's data.

    Raises UserError where the source is in no known format, or has no row.
    """
    name = detect(data.source, data.split) if data.format == "auto" else data.format
    rules = Rules(data.ties, data.votes, data.split)
    parts = PARTS[name](local(data.source)) if data.split == ALL and name in PARTS else []
    joined = len(parts) > 1
    source: PairSource = Joined(data.source, parts, name, rules) if joined else READERS[name](data.source, rules)
    if not len(source):
        raise UserError(f"data.source '{data.source}' has no row")
    return Spread(source, data.max_rows) if data.max_rows and data.max_rows < len(source) else source


def detect(source: str, split: str | None = None) -> str:
    """Name the format of a source by its files. Raises UserError where they are of none."""
    path = local(source)
    if folders_of_pairs(path):
        return "folders"
    if path.suffix in (".json", ".jsonl") and not path.is_dir():
        return "jsonl"
    records = files_of_records(path) if path.is_dir() else []
    if any(name.endswith(METADATA) for name in records):
        return "jsonl"
    files = walk(path) if path.is_dir() else []
    if path.is_dir() and not any(name.endswith(".parquet") and not hidden(name) for name in files):
        if records:
            return "jsonl"
        there = f"it has {', '.join(files[:5])}{', ...' if len(files) > 5 else ''}" if files else "it is empty"
        raise UserError(
            f"data.source '{source}' is in no known format: a folder has parquet files, the folders w and l, or "
            f"{METADATA}; {there}"
        )
    return "latents" if "latents_0" in ParquetRows(source, split).names else "pickapic"


class Joined:
    """Several sources of one format as one, in the order of their names, as all splits of a source are."""

    split: str | None = None

    def __init__(self, source: str, names: list[str], format: str, rules: Rules) -> None:
        root, rules = local(source), replace(rules, split=None)
        self.parts = {name: READERS[format](str(root / name), rules) for name in names}
        self.starts = list(accumulate((len(part) for part in self.parts.values()), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def identity(self) -> dict:
        """Return the identities of the sources by name."""
        return {name: part.identity() for name, part in self.parts.items()}

    def extent(self) -> tuple[int, int]:
        """Return how many pairs and images there are at most."""
        pairs, images = zip(*(part.extent() for part in self.parts.values()), strict=True)
        return sum(pairs), sum(images)

    def left_out(self) -> list[LeftOut]:
        """List the files that the sources leave out."""
        return [
            LeftOut(f"{name}/{out.file}", out.reason) for name, part in self.parts.items() for out in part.left_out()
        ]

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop) of all; ids begin with the number of a source."""
        for number, (name, part) in enumerate(self.parts.items()):
            first = self.starts[number]
            low, high = max(start - first, 0), min(stop - first, len(part))
            for item in part.read(low, high) if low < high else ():
                place, row = f"{name}: {item.place}", item.row + first
                if isinstance(item, Pair):
                    yield replace(item, id=number << _SOURCE | item.id, place=place, row=row)
                else:
                    yield replace(item, place=place, row=row)


_SOURCE = 52  # bits of an id below the number of its source; a ranking's pair of a billion rows has 51


class Spread:
    """A part of a large source, in a few stretches evenly over it: the other rows are neither decoded nor encoded."""

    STRETCHES = 8

    def __init__(self, source: PairSource, rows: int) -> None:
        self.source, self.rows = source, rows
        self.embedded, self.split = brought_by(source), source.split

    def __len__(self) -> int:
        return self.rows

    def identity(self) -> dict:
        """Return the number of rows, and the identity of the source that they are taken from."""
        return {"rows": self.rows, "of": self.source.identity()}

    def extent(self) -> tuple[int, int]:
        """Return about how many pairs and images there are, by those of the whole source."""
        pairs, images = self.source.extent()
        return tuple(-(-count * self.rows // len(self.source)) for count in (pairs, images))  # type: ignore[return-value]

    def left_out(self) -> list[LeftOut]:
        """List the files that the whole source leaves out."""
        return self.source.left_out()

    def _stretches(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield rows [low, high) of the source that make up [start, stop) of this part, and by how much they differ."""
        for stretch in range(self.STRETCHES):
            first, end = (self.rows * at // self.STRETCHES for at in (stretch, stretch + 1))
            low, high = max(start, first), min(stop, end)
            shift = len(self.source) * stretch // self.STRETCHES - first
            if low < high:
                yield low + shift, high + shift, shift

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop) of this part; their ids stay those that they have in the source."""
        for low, high, shift in self._stretches(start, stop):
            for item in self.source.read(low, high):
                yield replace(item, row=item.row - shift)

    def embeddings(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, np.ndarray]]]:
        """Yield row, caption and embeddings of the rows [start, stop) of this part."""
        if isinstance(self.source, EmbeddedSource):
            for low, high, shift in self._stretches(start, stop):
                for row, caption, values in self.source.embeddings(low, high):
                    yield row - shift, caption, values
