"""Parquet files as one sequence of rows, streamed by row group from a disk or from any file system fsspec knows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from fdpo_fast.config.errors import UserError, did_you_mean
from fdpo_fast.data.pairs import LeftOut, Rejected, Rules
from fdpo_fast.data.readers.splits import choose, hidden, local, outside_split, printable
from fdpo_fast.data.reading import PatientFile, UnreachableError, UnusableError, not_utf8, patiently
from fdpo_fast.files import is_hub_name

_ROWS_AT_ONCE = 64  # two images each
_AT_ONCE = 16  # footers read side by side: a hub data set has hundreds
_PATTERN = "*?["


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

    def __init__(self, source: str, split: str | None = None) -> None:
        found = _find(source)
        names = list(found.paths)
        chosen, self.split = (names, None) if found.alone else choose(names, split, source)
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
        self.rows = ParquetRows(source, self.rules.split)
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


@dataclass(frozen=True)
class _Found:
    system: fsspec.AbstractFileSystem
    paths: dict[str, str]
    """The paths of parquet files, by their names within the source, sorted."""
    others: list[LeftOut]
    """What else is there."""
    alone: bool = False
    """Whether the source is that one file."""


def _find(source: str) -> _Found:
    """Find the parquet files of a `data.source`."""
    path = local(source)
    url = source if "://" in source else str(path)
    if "://" not in source and not path.exists() and _is_hub_path(source):
        url = f"hf://datasets/{source}"
    try:
        system, whole = fsspec.core.url_to_fs(url)
        whole = whole.rstrip("/") or whole
        root, pattern = _existing(system, whole)
        if not pattern:
            found = [whole] if system.isfile(whole) else _below(system, whole)
        else:
            matches = system.glob(_glob(root, pattern))
            found = [
                below for match in matches for below in ([match] if system.isfile(match) else _below(system, match))
            ]
    except Exception as error:  # each file system and its network library has exceptions of its own
        what = "is not a path here, and as a data set of the hub it" if url.startswith("hf://") else ""
        words = (str(error).splitlines() or [""])[0]
        raise UserError(f"data.source '{source}' {what} cannot be read: {type(error).__name__}: {words}") from None
    if found == [whole]:
        return _Found(system, {whole.rsplit("/", 1)[-1]: whole}, [], alone=True)
    within = {file[len(root.rstrip("/")) :].lstrip("/"): file for file in sorted(found)}
    paths = {name: file for name, file in within.items() if name.endswith(".parquet") and not hidden(name)}
    if not paths:
        beside = [name.name for name in path.parent.iterdir()] if path.parent.is_dir() else []
        lacks = "has no parquet file" if path.exists() else f"is not here{did_you_mean(path.name, beside)}"
        raise UserError(f"data.source '{source}' {lacks}: give a file, a folder, a glob or owner/name")
    rest = (name for name in within if name not in paths)
    others = [LeftOut(printable(name), "hidden" if hidden(name) else "no parquet file") for name in rest]
    return _Found(system, paths, others)


def _existing(system: fsspec.AbstractFileSystem, path: str) -> tuple[str, str]:
    """Divide a path where it stops to exist: what is there, and the pattern behind it."""
    if not any(sign in path for sign in _PATTERN) or system.exists(path):
        return path, ""
    parts = path.split("/")
    first = next(at for at, part in enumerate(parts) if any(sign in part for sign in _PATTERN))
    for length in range(len(parts) - 1, first, -1):  # a folder whose name looks like a pattern
        if system.exists("/".join(parts[:length])):
            first = length
            break
    return "/".join(parts[:first]), "/".join(parts[first:])


def _glob(root: str, pattern: str) -> str:
    """Put a path and the pattern behind it together, so that nothing of the path counts as a pattern."""
    return "".join(f"[{letter}]" if letter in _PATTERN else letter for letter in root) + "/" + pattern


def is_here(source: str) -> bool:
    """Say whether a source is a path on this machine, or a pattern of some."""
    if "://" in source:
        return False
    system = fsspec.filesystem("file")
    root, pattern = _existing(system, str(local(source).absolute()))
    return bool(system.glob(_glob(root, pattern))) if pattern else system.exists(root)


def _below(system: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    return list(system.find(folder))


def _is_hub_path(source: str) -> bool:
    """Say whether a source that is no path here could be `owner/name` on the hub, or a folder in it."""
    name = "/".join(source.split("/")[:2])
    return is_hub_name(name) and not source.endswith(".parquet") and not any(sign in source for sign in _PATTERN)


def _footer(stream: PatientFile, size: int) -> str:
    """Return the SHA-256 of a parquet file's footer, which has sizes, offsets and statistics, without reading data."""
    stream.seek(size - 8)
    length = int.from_bytes(stream.read(8)[:4], "little")
    stream.seek(size - 8 - length)
    return hashlib.sha256(stream.read()).hexdigest()
