"""Where the records of a JSON file are: in its lines, or in one array."""

from __future__ import annotations

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.readers.records import loads
from fdpo_fast.data.reading import Seen, printable, read_file, text

HEAD = 1 << 16
"""Bytes that tell how a file is laid out."""


class Lines(NamedTuple):
    """The records of a file: where its lines begin, in bytes, or the records themselves, as they have been read."""

    starts: list[int]
    whole: list[bytes] | None = None


def lines(path: Path, seen: Seen) -> Lines:
    """Find the records of a file.

    Lines of UTF-8 are not kept; an array, lines of UTF-16 and those that end in CR alone are. Raises UserError for a
    file that is named .json and is none.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    begins = head.removeprefix(BOM_UTF8).lstrip()
    named = path.suffix.lower() == ".json"
    wide = head.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    try:
        if wide or (b"\r" in head and b"\n" not in head):
            content = _content(path, seen)
            own = [line.encode("utf-8", "surrogatepass") for line in content.split("\n") if line.strip()]
            return _kept(_array(content) if content.lstrip().startswith("[") else own)
        if begins.startswith(b"[") or (named and not _is_object(begins.split(b"\n")[0])):
            return _kept(_array(_content(path, seen)))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        if named or wide:
            raise UserError(f"{path} is no array of records, nor lines of them: {error}") from None
    return Lines(list(_starts(path)))


def _kept(records: list[bytes]) -> Lines:
    return Lines(list(range(len(records))), records)


def _content(path: Path, seen: Seen) -> str:
    return text(read_file(path, printable(str(path)), seen))


def _array(content: str) -> list[bytes]:
    """Read one array, a line for each record; ValueError where it is none."""
    records = loads(content)
    if isinstance(records, dict):
        raise ValueError(f"it holds one object with the keys {', '.join(records)}")
    if not isinstance(records, list):
        raise ValueError(f"it holds {records!r:.60}")
    return [json.dumps(record).encode() for record in records]


def _is_object(line: bytes) -> bool:
    """Say whether a line, of which no more than `HEAD` bytes are at hand, is a record by itself."""
    try:
        return isinstance(loads(line.decode("utf-8", "replace")), dict)
    except (ValueError, RecursionError):
        return len(line) >= HEAD and line.startswith(b"{")


def _starts(path: Path) -> Iterator[int]:
    """Yield where the lines that are not blank begin, in bytes; a byte order mark is passed over."""
    with path.open("rb") as file:
        at = file.seek(len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0)
        for line in file:
            if line.strip():
                yield at
            at += len(line)
