"""Parquet files as one sequence of rows, streamed by row group from a disk or from any file system fsspec knows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.pairs import LeftOut, Rejected, Rules
from fdpo_fast.data.readers.find import find
from fdpo_fast.data.readers.splits import choose, outside_split
from fdpo_fast.data.reading import PatientFile, UnreachableError, UnusableError, not_utf8, patiently, printable

_ROWS_AT_ONCE = 64  # two images each
_AT_ONCE = 16  # footers read side by side: a hub data set has hundreds


@dataclass(frozen=True)
class _File:
    name: str
    """Its path within the source."""
    parquet: pq.ParquetFile
    identity: dict
    """What tells another content."""


class ParquetRows:
    """The rows of a file, a folder of files, a glob, a URL (`hf://`, `s3://`, ...) or a hub data set `owner/name`.

    What exists under a source's name is that file or folder; a pattern is what does not. Hidden files are left out, and
    where file or folder names tell splits, all but `split` (null: that of training). Raises UserError where there is no
    such file, or one that is no parquet.
    """

    def __init__(self, source: str, split: str | None = None, outside: bool = False) -> None:
        found = find(source, outside)
        names = list(found.paths)
        chosen, self.split = (names, None) if found.alone and split is None else choose(names, split, source)
        self._others = found.others + list(outside_split(name for name in names if name not in set(chosen)))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            self.files = list(pool.map(lambda n: _open(found.system, found.paths[n], printable(n)), chosen))

    def __len__(self) -> int:
        return sum(file.parquet.metadata.num_rows for file in self.files)

    def left_out(self) -> list[LeftOut]:
        """List the files of the source that no row is read from."""
        return self._others

    def require(self, columns: list[str], kind: str) -> None:
        """Raise UserError when a file lacks one of `columns`."""
        for file in self.files:
            found = file.parquet.schema_arrow.names
            if twice := [name for name, count in Counter(found).items() if count > 1 and name in columns]:
                raise UserError(f"{file.name} has the column {twice[0]} twice: rename one of them")
            missing = [column for column in columns if column not in found]
            if missing:
                raise UserError(
                    f"{file.name} lacks the {kind} column{'s' * (len(missing) > 1)} {', '.join(missing)}: it has "
                    f"{', '.join(found)}"
                )

    @property
    def names(self) -> list[str]:
        """List the column names of all files."""
        return list(dict.fromkeys(name for file in self.files for name in file.parquet.schema_arrow.names))

    @property
    def shared(self) -> set[str]:
        """Return the column names that every file has, once each."""
        counts = [Counter(file.parquet.schema_arrow.names) for file in self.files]
        return set.intersection(*({name for name, count in names.items() if count == 1} for names in counts))

    def identity(self) -> list[dict]:
        """List name, size and footer of each file."""
        return [file.identity for file in self.files]

    def read(
        self, start: int, stop: int, columns: list[str], arrow: tuple[str, ...] = ()
    ) -> Iterator[tuple[int, str, dict[str, Any] | Rejected]]:
        """Yield (row, place, record) of the rows [start, stop); only the row groups that hold them are read.

        Columns of `arrow` stay scalars of pyarrow. In place of the record of a row that cannot be read is why.
        """
        first = 0
        for file in self.files:
            begin = first
            for group in range(file.parquet.num_row_groups):
                rows = file.parquet.metadata.row_group(group).num_rows
                if first < stop and first + rows > start:
                    wanted = range(max(start, first), min(stop, first + rows))
                    for row, record in _read_group(file, group, first, wanted, columns, arrow):
                        place = f"{file.name} row {row - begin}"
                        good = record if isinstance(record, dict) else Rejected(place, record, row)
                        yield row, place, good
                first += rows


class ParquetPairs:
    """What readers of pairs in parquet share: a pair to a row."""

    def __init__(self, format: str, source: str, rules: Rules | None = None) -> None:
        self.format, self.rules = format, rules or Rules()
        self.rows = ParquetRows(source, self.rules.split, self.rules.outside)
        self.split = self.rows.split

    def __len__(self) -> int:
        return len(self.rows)

    def identity(self) -> dict:
        """Return what is done with ties and votes, and each file's name, size and footer."""
        rules = {"ties": self.rules.ties, "votes": self.rules.votes}
        return {"format": self.format, **rules, "files": self.rows.identity()}

    def extent(self) -> tuple[int, int]:
        """Return how many pairs and images there are at most."""
        return len(self), 2 * len(self)

    def left_out(self) -> list[LeftOut]:
        """List the files that no row is read from."""
        return self.rows.left_out()


def _open(system: fsspec.AbstractFileSystem, path: str, name: str) -> _File:
    """Open a file, by its path and its name within the source."""
    try:
        info = patiently(lambda: system.info(path), path)
        size = info["size"]
        stream = PatientFile(lambda: system.open(path, "rb"), path, size)
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        footer = _footer(stream, size)
    except UnreachableError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        words = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a readable parquet file ({words}): fetch it again, or take it out of data.source"
        ) from None
    # the footer does not change with every value: what the file system knows of the content goes in too
    version = {key: str(info[key]) for key in ("mtime", "etag", "ETag", "blob_id") if info.get(key)}
    return _File(name, file, {"name": name, "bytes": size, "footer": footer, **version})


def _read_group(
    file: _File, group: int, first: int, wanted: range, columns: list[str], arrow: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the wanted rows of a group, which begins at `first`; where it is damaged, why there are no more."""
    at = first
    try:
        for batch in file.parquet.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=columns):
            low, high = max(wanted.start - at, 0), min(wanted.stop - at, len(batch))
            if low < high:
                part = batch.slice(low, high - low)
                cells = {
                    name: list(column) if name in arrow else _values(column)
                    for name, column in zip(part.schema.names, part.columns, strict=True)
                }
                for number in range(high - low):
                    record = {name: values[number] for name, values in cells.items()}
                    broken = [f"{name}: {value}" for name, value in record.items() if isinstance(value, Exception)]
                    yield at + low + number, f"a column does not decode: {broken[0]}" if broken else record
            at += len(batch)
            if at >= wanted.stop:
                return
    except UnreachableError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        for row in range(max(at, wanted.start), wanted.stop):
            yield row, f"the file is damaged: {file.name}, row group {group}: {printable(words)}"


def _values(column: pa.Array) -> list:
    """Return the values of a column as Python's; in place of one that cannot be, as text that is not UTF-8, why."""
    try:
        return column.to_pylist()
    except (ValueError, pa.ArrowException):
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return UnusableError(not_utf8(error))
    except (ValueError, pa.ArrowException) as error:
        return error


def _footer(stream: PatientFile, size: int) -> str:
    """Return the SHA-256 of a parquet file's footer, which has sizes, offsets and statistics, without reading data."""
    stream.seek(size - 8)
    length = int.from_bytes(stream.read(8)[:4], "little")
    stream.seek(size - 8 - length)
    return hashlib.sha256(stream.read()).hexdigest()
