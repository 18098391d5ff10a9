"""Pairs and rankings as JSON records beside image files.

A pair: `{"image_0": ..., "image_1": ..., "caption": ..., "prefer_0": 1, "prefer_1": 0}`. A ranking of any number of
images: `{"images": [...], "caption": ..., "rank": [...]}`, 1 the best, equal ranks a tie; each two of its images become
a pair. HPDv2's names (`prompt`, `file_path` with `human_preference`, `image_path` with `rank`) and ImageReward's
(`generations`, `ranking`) are read too.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.pairs import Pair, Rejected, compared
from fdpo_fast.files import digest, file_digest, stamp

METADATA = "metadata.jsonl"
_CAPTION = ("caption", "prompt", "text")
_IMAGES = ("images", "image_path", "file_path", "generations")
_BEST_IS_LOWEST = ("rank", "ranking")
_BEST_IS_HIGHEST = ("human_preference", "scores")
_IMAGES_AT_MOST = 1024  # of a ranking; ids of its pairs have ten bits for each image


class JSONRecords:
    """Reader of `metadata.jsonl` in a folder, or of any .jsonl or .json file.

    Images are looked for beside the file, then in a folder `images` there. A .jsonl file is streamed; a .json file
    holds one array. Raises UserError where the file cannot be read or holds no record.
    """

    def __init__(self, source: str, ties: str = "drop") -> None:
        path = Path(source).expanduser()
        self.path, self.ties = path / METADATA if path.is_dir() else path, ties
        self.lines: list[bytes] | None = None
        try:
            if self.path.suffix == ".json":
                records = json.loads(self.path.read_text(encoding="utf-8-sig"))
                self.lines = [json.dumps(record).encode() for record in records] if isinstance(records, list) else []
                self.starts = list(range(len(self.lines)))
            else:
                self.starts = list(_line_starts(self.path))
        except OSError as error:
            raise UserError(f"data.source '{source}' cannot be read: {error.strerror} ({self.path})") from None
        except ValueError as error:
            raise UserError(f"{self.path} is not valid JSON: {error}") from None
        if not self.starts:
            raise UserError(f"{self.path} holds no record: a line each in .jsonl, one array in .json")

    def __len__(self) -> int:
        return len(self.starts)

    def identity(self) -> dict:
        """Return the digest of the records, and that of the images' names, sizes and times of change."""
        stamps = []
        for _, record in self._records(0, len(self)):
            for image in _images(record) if isinstance(record, dict) else []:
                path = self._locate(image)
                stamps.append([str(image), stamp(path) if path else None])
        return {"format": "jsonl", "ties": self.ties, "records": file_digest(self.path), "images": digest(stamps)}

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the records [start, stop); a ranking gives one for each two of its images."""
        for row, record in self._records(start, stop):
            place = f"{self.path.name} record {row}"
            images = _images(record) if isinstance(record, dict) else []
            labels = _labels(record) if images else []
            if len(images) < 2 or len(images) != len(labels):
                yield Rejected(place, "neither a pair nor a ranking" if isinstance(record, dict) else "no JSON object")
                continue
            if len(images) > _IMAGES_AT_MOST:
                yield Rejected(place, f"more than {_IMAGES_AT_MOST} images")
                continue
            caption = _first(record, _CAPTION)
            sides = [self._locate(image) for image in images]
            for i, j in combinations(range(len(images)), 2):
                where = place if len(images) == 2 else f"{place} images {i} and {j}"
                id = (row << 20 | i << 10 | j) << 1
                yield from compared(id, where, caption, (sides[i], sides[j]), (labels[i], labels[j]), self.ties)

    def _records(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        if self.lines is not None:
            yield from ((row, json.loads(line)) for row, line in enumerate(self.lines[start:stop], start))
            return
        with self.path.open("rb") as file:
            for row, at in enumerate(self.starts[start:stop], start):
                file.seek(at)
                try:
                    yield row, json.loads(file.readline())
                except ValueError:
                    yield row, None

    def _locate(self, name: object) -> Path | None:
        if not isinstance(name, str):
            return None
        beside, inside = self.path.parent / name, self.path.parent / "images" / name
        try:
            return inside if not beside.exists() and inside.exists() else beside
        except OSError:  # a name that no file can have
            return None


def _line_starts(path: Path) -> Iterator[int]:
    """Yield where the lines that are not blank begin, in bytes; a byte order mark is passed over."""
    with path.open("rb") as file:
        at = file.seek(len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0)
        for line in file:
            if line.strip():
                yield at
            at += len(line)


def _first(record: dict, names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if name in record), None)


def _images(record: dict) -> list:
    if "image_0" in record:
        return [record["image_0"], record.get("image_1")]
    images = _first(record, _IMAGES)
    return images if isinstance(images, list) else []


def _labels(record: dict) -> list:
    """Return one number per image of a record, the larger the better."""
    if "image_0" in record:
        return [record.get("prefer_0"), record.get("prefer_1")]
    ranks, scores = _first(record, _BEST_IS_LOWEST), _first(record, _BEST_IS_HIGHEST)
    if isinstance(ranks, list):
        return [-rank if isinstance(rank, (int, float)) else None for rank in ranks]
    return scores if isinstance(scores, list) else []
