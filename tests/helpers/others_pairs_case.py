"""One set of pairs as somebody else made it, what is right about it, and the bits that such sets are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from tests.helpers.pictures import noisy_jpeg, write


@dataclass(frozen=True)
class Case:
    """A source of pairs, and what the commands are to say of it."""

    name: str
    build: Callable[[Path], Path | str]
    """Writes the files into an empty folder; returns what `data.source` is to be."""
    pairs: int | None
    """How many pairs there are; None where that is not judged, or where the commands are to stop."""
    refused: int | None = 0
    """How many rows are refused; None where that is not judged."""
    says: tuple[str, ...] = ()
    """What `fdpo data check` has to say somewhere, in its text or its JSON; or the sentence of what stops."""
    left_out: tuple[str, ...] = ()
    """Files, by their path within the source, that are not used."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Other values of the JSON."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of the section `data`."""
    stops: tuple[str, ...] = ()
    """The commands that end with one sentence: "data check" (and then "cache", too), or "cache" alone."""
    cached: int | None = None
    """How many pairs the cache has, where that is not `pairs`."""
    weights: tuple[float, ...] = ()
    """The weights of pairs that are in the cache, each once."""
    accounted: tuple[str, ...] = ()
    """Files that have to be named: in a refused row's place or reason, or among those left out."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that need a process of its own."""

    @property
    def expected(self) -> str:
        """The number of pairs as a table has it."""
        if self.stops:
            return f"{self.stops[0]} stops"
        return "any" if self.pairs is None else str(self.pairs)


def rows(count: int, start: int = 0, broken: Iterable[int] = ()) -> list[tuple]:
    """Rows of Pick-a-Pic, each unlike the others; the preferred image of those in `broken` is no image."""
    made = []
    for row in range(start, start + count):
        first = b"no image" if row - start in broken else noisy_jpeg(2 * row)
        made.append((f"picture {row}", first, noisy_jpeg(2 * row + 1), 1.0))
    return made


def parquet(path: Path, count: int, start: int = 0, broken: Iterable[int] = ()) -> Path:
    """Write `rows` to a file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, rows(count, start, broken))


def pair(root: Path, name: str, seed: int, caption: str | None = "a cat", suffix: str = ".jpg") -> None:
    """Write `w/NAME` and `l/NAME`, and the caption beside the first unless it is None."""
    for side, half in enumerate("wl"):
        file = root / half / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(noisy_jpeg(2 * seed + side))
    if caption is not None:
        (root / "w" / f"{name}.txt").write_text(caption, encoding="utf-8")


def folders(root: Path, count: int, start: int = 0) -> Path:
    """Write so many pairs as two folders, `w` and `l`."""
    for row in range(start, start + count):
        pair(root, f"{row:03d}", row, f"picture {row}")
    return root


def images(folder: Path, *names: str) -> None:
    """Write an image of its own to each name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noisy_jpeg(crc32(name.encode())))


def record(row: int, **changes: Any) -> dict:
    """A JSON record of the images that `jsonl` writes, changed as the case wants it."""
    made = {"caption": f"picture {row}", "image_0": f"{row}-0.jpg", "image_1": f"{row}-1.jpg"}
    return made | {"prefer_0": 1, "prefer_1": 0} | changes


def jsonl(folder: Path, records: Iterable[dict | bytes], name: str = "metadata.jsonl", encoding: str = "utf-8") -> Path:
    """Write records, a line each, beside two images for each; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row, made in enumerate(records):
        images(folder, f"{row}-0.jpg", f"{row}-1.jpg")
        lines.append(made if isinstance(made, bytes) else json.dumps(made, ensure_ascii=False).encode("utf-8"))
    content = b"\n".join(lines) + b"\n"
    (folder / name).write_bytes(content if encoding == "utf-8" else content.decode("utf-8").encode(encoding))
    return folder
