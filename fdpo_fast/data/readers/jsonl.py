"""Pairs and rankings as JSON records beside image files; how a record may look is in `records`."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from fdpo_fast.bounds import Bounds
from fdpo_fast.config.errors import UserError
from fdpo_fast.data.pairs import (
    MISSING,
    OUTSIDE,
    LeftOut,
    Pair,
    Picture,
    Rejected,
    Rules,
    Side,
    compared,
    in_text,
    short,
)
from fdpo_fast.data.readers.lines import lines
from fdpo_fast.data.readers.records import RECORD, Record, loads, parse
from fdpo_fast.data.readers.splits import ALL, choose, hidden, local, outside_split, walk
from fdpo_fast.data.reading import (
    Seen,
    UnusableError,
    is_file,
    is_folder,
    look,
    not_utf8,
    patiently,
    printable,
    status,
    unchanged,
)
from fdpo_fast.files import digest, file_digest

METADATA = "metadata.jsonl"
_FIRST_RECORD = 1 << 22  # bytes that tell whether a file holds pairs
_IMAGES_AT_MOST = 1024  # of a ranking; ids of its pairs have ten bits for each image


class _Survey(NamedTuple):
    """What the records name, as it was when the source was opened."""

    images: str
    """The digest of the images' names, sizes and times of change."""
    seen: dict[str, Seen | None]
    """What tells the content of each image, by the name that records have for it; None for one that is not there."""
    extent: tuple[int, int]
    """How many pairs and images the records make, at most."""


class JSONRecords:
    """Reader of `metadata.jsonl` in a folder, or of any .jsonl or .json file.

    Images are looked for beside the file, in a folder `images` there, in one of the file's own name, and in the source.
    A file of lines is streamed; one that holds an array is read as a whole. Raises UserError where the file cannot be
    read or holds no record.
    """

    def __init__(self, source: str, rules: Rules | None = None, part: str | None = None) -> None:
        self.source, self.rules, self.split = local(source), rules or Rules(), None
        self.inside = self.source if is_folder(self.source) else self.source.parent
        self.bounds = Bounds(self.inside, self.rules.outside)
        files = [part] if part is not None else files_of_records(self.source, self.bounds)
        self.path = self.source if self.inside != self.source else self.source / METADATA
        if files:
            chosen, self.split = choose(files, self.rules.split, source) if part is None else (files, None)
            if len(chosen) > 1:
                raise UserError(f"data.source '{source}' has the records {', '.join(chosen)}: name one of them")
            self.path = self.source / chosen[0]
        elif self.rules.split not in (None, ALL):
            choose([self.path.name], self.rules.split, source)
        self.name = printable(str(self.path.relative_to(self.inside)))
        parent = self.path.parent
        self.folders = list(dict.fromkeys((parent, parent / "images", parent / self.path.stem, self.inside)))
        if self.path != self.source and not self.bounds.hold(self.path):
            raise UserError(f"the records {self.path} are {OUTSIDE}: set it to true")
        if not is_file(self.path):
            raise UserError(f"data.source '{source}' cannot be read: there is no file {self.path}")
        self.seen = look(self.path)
        self.lines = patiently(lambda: lines(self.path, self.seen), printable(str(self.path)))
        if not self.lines.starts:
            raise UserError(f"{self.path} holds no record: a line each in .jsonl, one array in .json")

    def __len__(self) -> int:
        return len(self.lines.starts)

    @cached_property
    def survey(self) -> _Survey:
        """Look for all images once: one that is not there then is missing, one that goes later is out of reach."""
        seen: dict[str, Seen | None] = {}
        pairs = images = 0
        for _, record in self._records(0, len(self)):
            if isinstance(record, str):
                continue
            for image in record.images:
                if isinstance(image, str) and image not in seen and in_text(image) is None:
                    path = self._locate(image)
                    seen[image] = look(path) if path else None
            count = len(record.images)
            pairs, images = pairs + count * (count - 1) // 2, images + count
        return _Survey(digest([[ascii(name), stamp] for name, stamp in seen.items()]), seen, (pairs, images))

    def identity(self) -> dict:
        """Return the digest of the records, and that of the images' names, sizes and times of change."""
        rules = {"ties": self.rules.ties, "votes": self.rules.votes}
        return {"format": "jsonl", **rules, "records": self._digest(), "images": self.survey.images}

    def _digest(self) -> str:
        def whole() -> str:
            unchanged(self.path.stat(), self.seen)
            found = file_digest(self.path)
            unchanged(self.path.stat(), self.seen)
            return found

        return patiently(whole, printable(str(self.path)))

    def extent(self) -> tuple[int, int]:
        """Return how many pairs and images there are at most."""
        return self.survey.extent

    def left_out(self) -> list[LeftOut]:
        """List the files of a folder that no record names; none where the source is a file by itself."""
        if self.inside != self.source:
            return []
        found = (self._locate(name) for name, seen in self.survey.seen.items() if seen)
        named = {os.path.realpath(path) for path in (self.path, *found) if path}
        rest = [
            name for name in walk(self.source, bounds=self.bounds) if os.path.realpath(self.source / name) not in named
        ]
        records = set(files_of_records(self.source, self.bounds)) - {self.name}
        reasons = (
            (name, "hidden" if hidden(name) else next(iter(outside_split([name]))).reason)
            if hidden(name) or name in records
            else (name, "named by no record" if self.bounds.hold(self.source / name) else OUTSIDE)
            for name in rest
        )
        return [LeftOut(printable(name), reason) for name, reason in reasons]

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
                id = _id(row, i, j)
                two = (sides[i], sides[j]), (labels[i], labels[j])
                models = (record.models[i], record.models[j]) if record.models else (None, None)
                found = compared(row, id, where, record.caption, *two, self.rules, record.votes, models)
                yield from record.ordered(found)

    def scores(self) -> Iterator[tuple[int, dict[str, tuple[float, float]]]]:
        """Yield the id of each pair of a ranking that has scores, with those of its two images by scorer."""
        for row, record in self._records(0, len(self)):
            if not isinstance(record, str) and record.scores and len(record.images) <= _IMAGES_AT_MOST:
                for i, j in combinations(range(len(record.images)), 2):
                    yield _id(row, i, j), {name: (own[i], own[j]) for name, own in record.scores.items()}

    def _records(self, start: int, stop: int) -> Iterator[tuple[int, Record | str]]:
        """Yield (row, record) of the rows [start, stop), in place of one that is none the reason."""
        if self.lines.whole is not None:
            yield from ((row, _parsed(line)) for row, line in enumerate(self.lines.whole[start:stop], start))
            return
        name = printable(str(self.path))
        for row in range(start, min(stop, len(self))):
            yield row, _parsed(patiently(lambda at=self.lines.starts[row]: self._line(at), name))  # type: ignore[misc]

    def _line(self, at: int) -> bytes:
        with self.path.open("rb") as file:
            unchanged(os.fstat(file.fileno()), self.seen)
            file.seek(at)
            return file.readline()

    def _side(self, image: object) -> Side | str:
        """Find an image by what a record says of it, or say why there is none."""
        if not isinstance(image, str) or not image.strip():
            return f"{MISSING}: {short(image)} is no path"
        if (content := in_text(image)) is not None:
            return Picture("an image in base64", content)
        seen = self.survey.seen.get(image)
        if seen is None:
            if not all(self.bounds.hold(folder / image) for folder in self.folders):
                return f"an image lies {OUTSIDE}: {short(image)}"
            folders = ", ".join(printable(str(folder)) for folder in self.folders)
            return f"{MISSING}: {short(image)} is not in {folders}"
        # it was there; what is not there now is out of reach, which reading finds
        return Picture(printable(image), self._locate(image) or self.folders[0] / image, seen)

    def _locate(self, name: str) -> Path | None:
        """Find an image by its name, however its letters are spelled; None where it is not there, or not in bounds."""
        return patiently(lambda: self._located(name), printable(str(self.path)))

    def _located(self, name: str) -> Path | None:
        spellings = dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))))
        for path in (folder / spelling for folder in self.folders for spelling in spellings):
            if self.bounds.hold(path) and status(path) is not None:
                return path
        self.path.stat()  # OSError where even the records are not there, as with a disk that is gone
        return None


def _id(row: int, i: int, j: int) -> int:
    """Return the id of the pair of images i and j of a record."""
    return (row << 20 | i << 10 | j) << 1


def files_of_records(root: Path, bounds: Bounds) -> list[str]:
    """List the files of records in a folder, by their names within it.

    They are metadata.jsonl, or that of the folders in it and within bounds, as of splits, or else whatever .jsonl and
    .json holds pairs.
    """
    if not is_folder(root):
        return []
    if is_file(root / METADATA):
        return [METADATA]
    names = patiently(lambda: sorted(path.name for path in root.iterdir()), printable(str(root)))
    inside = [root / name for name in names if not hidden(name)]
    below = [f"{path.name}/{METADATA}" for path in inside if _is_split(path, bounds)]
    return below or [path.name for path in inside if _is_records(path, bounds)]


SUFFIXES = (".json", ".jsonl")


def _is_split(path: Path, bounds: Bounds) -> bool:
    return bounds.hold(path) and is_folder(path) and is_file(path / METADATA)


def _is_records(path: Path, bounds: Bounds) -> bool:
    return path.suffix.lower() in SUFFIXES and bounds.hold(path) and _has_pairs(path)


def _has_pairs(path: Path) -> bool:
    """Say whether a file begins as one of records of pairs does."""

    def head() -> bytes:
        with path.open("rb") as file:
            return file.read(_FIRST_RECORD)

    if not is_file(path):
        return False
    begins = patiently(head, printable(str(path))).replace(b"\0", b"")  # UTF-16 has zeros between
    return any(f'"{key}"'.encode() in begins for key in RECORD)


def _parsed(line: bytes) -> Record | str:
    try:
        return parse(loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return f"the record is not UTF-8: {not_utf8(error)}"
    except UnusableError as error:
        return str(error)
    except (ValueError, RecursionError) as error:
        return f"no JSON object: {error}"
