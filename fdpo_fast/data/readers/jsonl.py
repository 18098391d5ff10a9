"""Pairs and rankings as JSON records beside image files; how a record may look is in `records`."""

from __future__ import annotations

import json
import unicodedata
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.pairs import LeftOut, Pair, Picture, Rejected, Rules, Side, compared, in_text, short
from fdpo_fast.data.readers.records import RECORD, Record, parse
from fdpo_fast.data.readers.splits import choose, hidden, local, outside_split, printable, walk
from fdpo_fast.data.reading import UnusableError, not_utf8, patiently, read_file, stamp, text
from fdpo_fast.files import digest, file_digest

METADATA = "metadata.jsonl"
_HEAD = 1 << 16  # bytes that tell what a file is
_IMAGES_AT_MOST = 1024  # of a ranking; ids of its pairs have ten bits for each image


class _Survey(NamedTuple):
    """What the records name, as it was when the source was opened."""

    images: str
    """The digest of the images' names, sizes and times of change."""
    missing: frozenset[str]
    """The names of images that were not there."""
    extent: tuple[int, int]
    """How many pairs and images the records make, at most."""


class JSONRecords:
    """Reader of `metadata.jsonl` in a folder, or of any .jsonl or .json file.

    Images are looked for beside the file, in a folder `images` there, in one of the file's own name, and in the source.
    A .jsonl file is streamed; a .json file holds one array. Raises UserError where the file cannot be read or holds no
    record.
    """

    def __init__(self, source: str, rules: Rules | None = None) -> None:
        self.source, self.rules, self.split = local(source), rules or Rules(), None
        self._files = files_of_records(self.source) if self.source.is_dir() else []
        self.path = self.source / METADATA if self.source.is_dir() and not self._files else self.source
        if self._files:
            chosen, self.split = choose(self._files, self.rules.split, source)
            if len(chosen) > 1:
                raise UserError(f"data.source '{source}' has the records {', '.join(chosen)}: name one of them")
            self.path = self.source / chosen[0]
        inside = self.source if self.source.is_dir() else self.path.parent
        self.name = printable(str(self.path.relative_to(inside)))
        parent = self.path.parent
        self.folders = list(dict.fromkeys((parent, parent / "images", parent / self.path.stem, inside)))
        self.lines: list[bytes] | None = None
        try:
            self._index()
        except OSError as error:
            raise UserError(f"data.source '{source}' cannot be read: {error.strerror} ({self.path})") from None
        if not self.starts:
            raise UserError(f"{self.path} holds no record: a line each in .jsonl, one array in .json")

    def _index(self) -> None:
        """Find where the records are; all of them are read where they are no lines of UTF-8."""
        with self.path.open("rb") as file:
            head = file.read(_HEAD)
        wide = head.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
        first = head.removeprefix(BOM_UTF8).lstrip()[:1]
        if not wide and (first != b"[" and self.path.suffix != ".json"):
            self.starts = list(_line_starts(self.path))
            return
        try:
            content = text(read_file(self.path, str(self.path)))
        except UnusableError as error:
            raise UserError(f"{self.path} is no JSON: {error}") from None
        self.lines = _lines(content, self.path)
        self.starts = list(range(len(self.lines)))

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def survey(self) -> _Survey:
        """Look for all images once: one that is not there then is missing, one that goes later is out of reach."""
        stamps, missing = [], set()
        pairs = images = 0
        for _, record in self._records(0, len(self)):
            for image in record.images if isinstance(record, Record) else ():
                if isinstance(image, str) and in_text(image) is None:
                    path = patiently(lambda image=image: self._look(image), str(self.path))  # type: ignore[misc]
                    stamps.append([ascii(image), stamp(path) if path else None])
                    if path is None:
                        missing.add(image)
            count = len(record.images) if isinstance(record, Record) else 0
            pairs, images = pairs + count * (count - 1) // 2, images + count
        return _Survey(digest(stamps), frozenset(missing), (pairs, images))

    def identity(self) -> dict:
        """Return the digest of the records, and that of the images' names, sizes and times of change."""
        rules = {"ties": self.rules.ties, "votes": self.rules.votes}
        return {"format": "jsonl", **rules, "records": self._digest(), "images": self.survey.images}

    def _digest(self) -> str:
        return patiently(lambda: file_digest(self.path), str(self.path))

    def extent(self) -> tuple[int, int]:
        """Return how many pairs and images there are at most."""
        return self.survey.extent

    def left_out(self) -> list[LeftOut]:
        """List the files of a folder that no record names; none where the source is a file by itself."""
        if not self.source.is_dir():
            return []
        named = {self.path.resolve()}
        for _, record in self._records(0, len(self)):
            images = record.images if isinstance(record, Record) else ()
            named |= {path.resolve() for image in images if isinstance(image, str) and (path := self._locate(image))}
        rest = [name for name in walk(self.source) if (self.source / name).resolve() not in named]
        splits = {name: next(iter(outside_split([name]))) for name in self._files}
        reasons = ((name, splits.get(name), "hidden" if hidden(name) else "named by no record") for name in rest)
        return [LeftOut(printable(name), split.reason if split else reason) for name, split, reason in reasons]

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the records [start, stop); a ranking gives one for each two of its images."""
        for row, record in self._records(start, stop):
            place = f"{self.name} record {row}"
            if isinstance(record, str):
                yield Rejected(place, record, row)
                continue
            images, labels = record.images, record.labels
            if len(images) > _IMAGES_AT_MOST:
                yield Rejected(place, f"more than {_IMAGES_AT_MOST} images: it has {len(images)}", row)
                continue
            sides = [self._side(image) for image in images]
            for i, j in combinations(range(len(images)), 2):
                where = place if len(images) == 2 else f"{place} images {i} and {j}"
                id = (row << 20 | i << 10 | j) << 1
                two = (sides[i], sides[j]), (labels[i], labels[j])
                yield from record.ordered(compared(row, id, where, record.caption, *two, self.rules))

    def _records(self, start: int, stop: int) -> Iterator[tuple[int, Record | str]]:
        """Yield (row, record) of the rows [start, stop), in place of one that is none the reason."""
        if self.lines is not None:
            yield from ((row, _parsed(line)) for row, line in enumerate(self.lines[start:stop], start))
            return
        for row in range(start, min(stop, len(self))):
            yield row, _parsed(patiently(lambda at=self.starts[row]: self._line(at), str(self.path)))  # type: ignore[misc]

    def _line(self, at: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(at)
            return file.readline()

    def _side(self, image: object) -> Side | str:
        """Find an image by what a record says of it, or say why there is none."""
        if not isinstance(image, str):
            return f"{short(image)} is no path"
        if (content := in_text(image)) is not None:
            return Picture("an image in base64", content)
        if image in self.survey.missing:
            return f"{short(image)} is not in {', '.join(self._named(folder) for folder in self.folders)}"
        # it was there; what is not there now is out of reach, which reading finds
        return Picture(printable(image), self._locate(image) or self.folders[0] / image)

    def _look(self, name: str) -> Path | None:
        """Find an image; OSError where even the file of the records is not there, as with a disk that is gone."""
        path = self._locate(name)
        if path is None:
            self.path.stat()
        return path

    def _named(self, folder: Path) -> str:
        return printable(str(folder))

    def _locate(self, name: str) -> Path | None:
        """Find an image by its name, however its letters are spelled; None where it is not there."""
        spellings = dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))))
        for folder in self.folders:
            for spelling in spellings:
                try:
                    if (path := folder / spelling).exists():
                        return path
                except (OSError, ValueError):  # a name that no file can have
                    return None
        return None


def files_of_records(root: Path) -> list[str]:
    """List the files of records in a folder, by their names within it.

    They are metadata.jsonl, or that of the folders in it, as of splits, or else whatever .jsonl and .json holds pairs.
    """
    if (root / METADATA).is_file():
        return [METADATA]
    inside = sorted(path for path in root.iterdir() if not hidden(path.name))
    below = [f"{path.name}/{METADATA}" for path in inside if (path / METADATA).is_file()]
    return below or [path.name for path in inside if path.suffix in (".json", ".jsonl") and _has_pairs(path)]


def _has_pairs(path: Path) -> bool:
    """Say whether a file begins as one of records of pairs does."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return any(f'"{key}"'.encode() in head.replace(b"\0", b"") for key in RECORD)  # UTF-16 has zeros between


def _lines(content: str, path: Path) -> list[bytes]:
    """Return a line for each record of a file that holds one array, or already is lines; UserError for other JSON."""
    lines = [line.encode("utf-8", "surrogatepass") for line in content.split("\n") if line.strip()]
    try:
        records = json.loads(content)
    except ValueError as error:
        if content.lstrip().startswith("{") and isinstance(_parsed(lines[0]), Record):
            return lines
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if isinstance(records, dict) and len(lines) == 1 and isinstance(_parsed(lines[0]), Record):
        return lines
    if not isinstance(records, list):
        keys = f" with the keys {', '.join(records)}" if isinstance(records, dict) else ""
        raise UserError(f"{path} holds {type(records).__name__}{keys}, not an array of records")
    return [json.dumps(record).encode() for record in records]


def _parsed(line: bytes) -> Record | str:
    try:
        return parse(json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return f"the record is not UTF-8: {not_utf8(error)}"
    except UnusableError as error:
        return str(error)
    except (ValueError, RecursionError) as error:
        return f"no JSON object: {error}"


def _line_starts(path: Path) -> Iterator[int]:
    """Yield where the lines that are not blank begin, in bytes; a byte order mark is passed over."""
    with path.open("rb") as file:
        at = file.seek(len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0)
        for line in file:
            if line.strip():
                yield at
            at += len(line)
