"""Parquet files as one sequence of rows, streamed by row group from a disk or from any file system fsspec knows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from fdpo_fast.config.errors import UserError, did_you_mean
from fdpo_fast.files import is_hub_name

_ROWS_AT_ONCE = 64  # two images each
_AT_ONCE = 16  # footers read side by side: a hub data set has hundreds


class ParquetRows:
    """The rows of a file, a folder of files, a glob, a URL (`hf://`, `s3://`, ...) or a hub data set `owner/name`.

    Of a hub data set the files of the training split are taken, where file names tell. Raises UserError where there is
    no such file, or one that is no parquet.
    """

    def __init__(self, source: str) -> None:
        system, paths = _find(source)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            self.files = list(pool.map(lambda path: _open(system, path), paths))

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for _, file, _ in self.files)

    def require(self, columns: list[str], kind: str) -> None:
        """Raise UserError when a file lacks one of `columns`."""
        for name, file, _ in self.files:
            missing = [column for column in columns if column not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{name} lacks the {kind} column{'s' * (len(missing) > 1)} {', '.join(missing)}")

    @property
    def names(self) -> list[str]:
        """List the column names of the first file."""
        return self.files[0][1].schema_arrow.names

    def identity(self) -> list[dict]:
        """List name, size and footer of each file."""
        return [identity for *_, identity in self.files]

    def read(self, start: int, stop: int, columns: list[str]) -> Iterator[tuple[int, str, dict]]:
        """Yield (row, place, record) of the rows [start, stop); only the row groups that hold them are read."""
        first = 0
        for name, file, _ in self.files:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first < stop and first + rows > start:
                    yield from _read_group(name, file, group, first, (start, stop), columns)
                first += rows


def _open(system: fsspec.AbstractFileSystem, path: str) -> tuple[str, pq.ParquetFile, dict]:
    """Open a file; return its name, the file, and what identifies its content."""
    try:
        info = system.info(path)
        size = info["size"]
        file = pq.ParquetFile(system.open(path, "rb"))
        footer = _footer(system, path, size)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from None
    name = path.rsplit("/", 1)[-1]
    # the footer does not change with every value: what the file system knows of the content goes in too
    version = {key: str(info[key]) for key in ("mtime", "etag", "ETag", "blob_id") if info.get(key)}
    return name, file, {"name": name, "bytes": size, "footer": footer, **version}


def _read_group(
    name: str, file: pq.ParquetFile, group: int, first: int, wanted: tuple[int, int], columns: list[str]
) -> Iterator[tuple[int, str, dict]]:
    start, stop = wanted
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=columns):
        low, high = max(start - first, 0), min(stop - first, len(batch))
        for at, record in enumerate(batch.slice(low, high - low).to_pylist() if low < high else [], first + low):
            yield at, f"{name} row {at}", record
        first += len(batch)
        if first >= stop:
            return


def _find(source: str) -> tuple[fsspec.AbstractFileSystem, list[str]]:
    """Find the file system and the sorted parquet files of a `data.source`."""
    local = Path(source).expanduser()
    url = str(local)
    if "://" in source:
        url = source
    elif not local.exists() and _is_hub_path(source):
        url = f"hf://datasets/{source}"
    try:
        system, root = fsspec.core.url_to_fs(url)
        paths = system.glob(f"{root.rstrip('/')}/**/*.parquet" if system.isdir(root) else root)
    except Exception as error:  # each file system and its network library has exceptions of its own
        what = "is not a path here, and as a data set of the hub it" if url.startswith("hf://") else ""
        raise UserError(f"data.source '{source}' {what} cannot be read: {type(error).__name__}: {error}") from None
    paths = sorted(path for path in paths if not path.rsplit("/", 1)[-1].startswith(".") and system.isfile(path))
    if url.startswith("hf://datasets/"):
        paths = [path for path in paths if path.rsplit("/", 1)[-1].startswith("train")] or paths
    if not paths:
        beside = [path.name for path in local.parent.iterdir()] if local.parent.is_dir() else []
        lacks = "has no parquet file" if local.exists() else f"is not here{did_you_mean(local.name, beside)}"
        raise UserError(f"data.source '{source}' {lacks}: give a file, a folder, a glob or owner/name")
    return system, paths


def _is_hub_path(source: str) -> bool:
    """Say whether a source that is no path here could be `owner/name` on the hub, or a folder in it."""
    name = "/".join(source.split("/")[:2])
    return is_hub_name(name) and not source.endswith(".parquet") and not any(sign in source for sign in "*?[")


def _footer(system: fsspec.AbstractFileSystem, path: str, size: int) -> str:
    """Return the SHA-256 of a parquet file's footer, which has sizes, offsets and statistics, without reading data."""
    tail = system.cat_file(path, start=size - 8)
    length = int.from_bytes(tail[:4], "little")
    return hashlib.sha256(system.cat_file(path, start=size - 8 - length)).hexdigest()
