"""The pair formats by name, and which one a source is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from fdpo_fast.bounds import Bounds
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.labels import AS_JUDGED, labelled
from fdpo_fast.data.pairs import OUTSIDE, EmbeddedSource, LeftOut, Pair, PairSource, Rejected, Rules, brought_by
from fdpo_fast.data.readers.folders import Folders, folders_of_pairs
from fdpo_fast.data.readers.jsonl import METADATA, SUFFIXES, JSONRecords, files_of_records
from fdpo_fast.data.readers.latents import EncodedPairs
from fdpo_fast.data.readers.parquet import ParquetRows
from fdpo_fast.data.readers.pickapic import PickAPic
from fdpo_fast.data.readers.splits import ALL, hidden, local, walk
from fdpo_fast.data.reading import is_file, is_folder

READERS: dict[str, Callable[[str, Rules], PairSource]] = {
    "pickapic": PickAPic,
    "folders": Folders,
    "jsonl": JSONRecords,
    "latents": EncodedPairs,
}


PARTS: dict[str, tuple[Callable[[Path, Bounds], list[str]], Callable[[str, Rules, str], PairSource]]] = {
    "folders": (folders_of_pairs, Folders),
    "jsonl": (files_of_records, JSONRecords),
}
"""The formats of which a folder may hold several, as of splits: what lists them by their names, and what reads one."""


def open_source(data: Data) -> PairSource:
    """Open the reader of the configuration's data.

    Raises UserError where the source is in no known format, or has no row, and where `data.labels` are none.
    """
    name = detect(data.source, data.split, data.outside) if data.format == "auto" else data.format
    rules = Rules(data.ties, data.votes, data.split, data.outside)
    listed, read = PARTS.get(name, (None, None))
    parts = listed(local(data.source), Bounds(local(data.source), data.outside)) if listed and data.split == ALL else []
    own = rules if data.labels is None else replace(rules, ties=AS_JUDGED.ties, votes=AS_JUDGED.votes)
    source = Joined(data.source, parts, read, own) if read and len(parts) > 1 else READERS[name](data.source, own)
    if not len(source):
        raise UserError(f"data.source '{data.source}' has no row")
    if data.labels is not None:
        source = labelled(source, data, rules)
    return Spread(source, data.max_rows) if data.max_rows and data.max_rows < len(source) else source


def detect(source: str, split: str | None = None, outside: bool = False) -> str:
    """Name the format of a source by its files. Raises UserError where they are of none."""
    path = local(source)
    bounds = Bounds(path, outside)
    if folders_of_pairs(path, bounds):
        return "folders"
    folder = is_folder(path)
    if path.suffix.lower() in SUFFIXES and not folder:
        return "jsonl"
    if not folder and path.suffix and path.suffix.lower() != ".parquet" and is_file(path):
        raise UserError(
            f"data.source '{source}' is in no known format: a file is .parquet, .jsonl or .json, not {path.suffix}"
        )
    records = files_of_records(path, bounds)
    if any(name.endswith(METADATA) for name in records):
        return "jsonl"
    files = walk(path, bounds=bounds) if folder else []
    if folder and not any(name.lower().endswith(".parquet") and not hidden(name) for name in files):
        if records:
            return "jsonl"
        there = f"it has {', '.join(files[:5])}{', ...' if len(files) > 5 else ''}" if files else "it is empty"
        raise UserError(
            f"data.source '{source}' is in no known format: a folder has parquet files, the folders w and l, or "
            f"{METADATA}; {there}{'' if all(bounds.hold(path / name) for name in files) else f', some of it {OUTSIDE}'}"
        )
    return "latents" if "latents_0" in ParquetRows(source, split, outside).names else "pickapic"


class Joined:
    """Several sources of one format as one, in the order of their names, as all splits of a source are."""

    split: str | None = None

    def __init__(
        self, source: str, names: list[str], read: Callable[[str, Rules, str], PairSource], rules: Rules
    ) -> None:
        self.parts = {name: read(source, rules, name) for name in names}
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
        """List the files that all of the sources leave out."""
        lists = [part.left_out() for part in self.parts.values()]
        unused = set.intersection(*({out.file for out in left} for left in lists))
        return [out for out in lists[0] if out.file in unused]

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop) of all; ids begin with the number of a source."""
        for number, part in enumerate(self.parts.values()):
            first = self.starts[number]
            low, high = max(start - first, 0), min(stop - first, len(part))
            for item in part.read(low, high) if low < high else ():
                if isinstance(item, Pair):
                    yield replace(item, id=number << _SOURCE | item.id, row=item.row + first)
                else:
                    yield replace(item, row=item.row + first)


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
            shift = (len(self.source) - self.rows) * stretch // self.STRETCHES
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
