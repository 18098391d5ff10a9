"""Pairs as two folders: `w/` holds the preferred images, `l/` the dispreferred ones, under equal names."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from pathlib import Path

from PIL import Image

from fdpo_fast.bounds import Bounds
from fdpo_fast.config.errors import UserError
from fdpo_fast.data.decode import SUFFIXES
from fdpo_fast.data.pairs import OUTSIDE, LeftOut, Pair, Picture, Rejected, Rules, compared
from fdpo_fast.data.readers.splits import ALL, choose, hidden, local, outside_split, walk
from fdpo_fast.data.reading import (
    Seen,
    UnusableError,
    is_dangling,
    is_file,
    is_folder,
    look,
    patiently,
    printable,
    read_file,
    text,
)
from fdpo_fast.files import digest

SIDES = ("w", "l")
CAPTIONS = (".txt", ".caption")
"""The suffixes of captions: the usual one, and that of kohya's scripts."""
Files = dict[str, list[Path]]


class Folders:
    """Reader of `<source>/w` and `<source>/l`, with a caption in `NAME.txt` or `NAME.caption` beside either or above.

    Folders within them count; NAME is a path within w and l then. The extensions of the two images may differ; a name
    with two images on one side is refused, and the others are read. There are no ties in this format. Raises UserError
    when one of the folders is missing or no image is there.
    """

    def __init__(self, source: str, rules: Rules | None = None, part: str | None = None) -> None:
        self.outer, rules = local(source), rules or Rules()
        self.bounds = Bounds(self.outer, rules.outside)
        found = folders_of_pairs(self.outer, self.bounds) if part is None else [part]
        if not found:
            lacking = next((side for side in SIDES if not is_folder(self.outer / side)), "")
            raise UserError(f"data.source '{source}' has no folder '{lacking}': pairs are two folders, w and l")
        names = [self.outer.name] if found == [""] and rules.split not in (None, ALL) else found
        chosen, self.split = choose(names, rules.split, source) if part is None and names != [""] else (found, None)
        chosen = found if found == [""] else chosen
        if len(chosen) > 1:
            raise UserError(f"data.source '{source}' has the folders of pairs {', '.join(chosen)}: name one of them")
        self.part, self.root = f"{chosen[0]}/" if chosen[0] else "", self.outer / chosen[0]
        for folder in (self.root, *(self.root / side for side in SIDES)):
            if not self.bounds.hold(folder):
                raise UserError(f"the folder {folder} is {OUTSIDE}: set it to true")
        self.texts: Files = defaultdict(list)
        self._unused: list[LeftOut] = []
        self.images = [self._images(side) for side in SIDES]
        for within in walk(self.root, SIDES, self.bounds):
            path = self.root / within
            reason = self._unread(within, path) or "neither in w nor in l"
            if path.suffix.lower() in CAPTIONS and reason == "neither in w nor in l":
                self.texts[_name(within)].append(path)
            else:
                self._unused.append(LeftOut(within, reason))
        self.names = sorted(set().union(*self.images))
        if not self.names:
            raise UserError(f"data.source '{source}' has no image in its folders w and l")

    def _images(self, side: str) -> Files:
        """Find the image files of a side by their names without extension; captions are noted by the way."""
        files: Files = defaultdict(list)
        for within in walk(self.root / side, bounds=self.bounds):
            path = self.root / side / within
            suffix = path.suffix.lower()
            if reason := self._unread(within, path):
                self._unused.append(LeftOut(f"{side}/{within}", reason))
            elif suffix in CAPTIONS:
                self.texts[_name(within)].append(path)
            elif suffix in SUFFIXES and (not self.bounds.hold(path) or is_file(path)):
                files[_name(within)].append(path)
            elif not self.bounds.hold(path):
                self._unused.append(LeftOut(f"{side}/{within}", OUTSIDE))
            elif not any(letter.isalpha() for letter in suffix) and _is_image(path):
                files[_composed(within)].append(path)
            else:
                self._unused.append(LeftOut(f"{side}/{within}", "no image that is read"))
        return dict(files)

    @cached_property
    def seen(self) -> dict[Path, Seen]:
        """Look at all files once: what is read later has to be the same."""
        images = (path for files in self.images for name in files.values() for path in name)
        texts = (path for name in self.names for path in self.texts.get(name, []))
        return {path: look(path) for path in (*images, *texts) if self.bounds.hold(path)}

    def __len__(self) -> int:
        return len(self.names)

    def identity(self) -> dict:
        """Return the digests of the captions' content and of the images' names, sizes and times of change."""
        captions = [[name, self._content(path)] for name in self.names for path in self.texts.get(name, [])]
        images = [
            [side, name, path.name, *self.seen.get(path, ())]
            for side, files in zip(SIDES, self.images, strict=True)
            for name, paths in files.items()
            for path in paths
        ]
        return {"format": "folders", "rows": len(self), "captions": digest(captions), "images": digest(images)}

    def _content(self, path: Path) -> str:
        try:
            return hashlib.sha256(self._read(path)).hexdigest()
        except UnusableError as error:
            return str(error)

    def extent(self) -> tuple[int, int]:
        """Return how many pairs and images there are at most."""
        return len(self), 2 * len(self)

    def left_out(self) -> list[LeftOut]:
        """List the files of the source that are neither image nor caption of a pair."""
        named = set(self.names)
        captions = [
            LeftOut(str(path.relative_to(self.root)), "a caption without an image")
            for name, paths in self.texts.items()
            if name not in named
            for path in paths
        ]
        own = [LeftOut(self.part + file, reason) for file, reason in (*self._unused, *captions)]
        other = [
            LeftOut(name, "hidden" if hidden(name) else out.reason)
            for name in (walk(self.outer, (self.root.name,), self.bounds) if self.part else [])
            for out in outside_split([name])
        ]
        return [LeftOut(printable(file), reason) for file, reason in (*own, *other)]

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the names [start, stop) in their order; ids are 2 * row, since nothing here is a tie."""
        for row, name in enumerate(self.names[start:stop], start):
            place = f"pair '{self.part}{printable(name)}'"
            sides = [images.get(name, []) for images in self.images]
            without = [side for side, found in zip(SIDES, sides, strict=True) if not found]
            twice = [
                f"a name is there twice: {side} has {found[0].name} and {found[1].name}; remove one of them"
                for side, found in zip(SIDES, sides, strict=True)
                if len(found) > 1
            ]
            if out := [path for found in sides for path in found if not self.bounds.hold(path)]:
                yield Rejected(place, f"an image lies {OUTSIDE}: {self._place(out[0])}", row)
                continue
            pictures = [self._picture(path) for found in sides for path in found]
            if without or twice:
                reason = f"no image in {without[0]}" if without else printable(twice[0])
                yield Rejected(place, reason, row, tuple(pictures))
                continue
            caption: str | UnusableError
            try:
                caption = self._caption(name)
            except UnusableError as error:
                caption = error
            first, second = pictures
            for pair in compared(row, 2 * row, place, caption, (first, second), (1, 0), Rules()):
                yield pair if isinstance(pair, Rejected) else _unordered(pair)

    def _picture(self, path: Path) -> Picture:
        return Picture(self._place(path), path, self.seen[path])

    def _place(self, path: Path) -> str:
        return printable(str(path.relative_to(self.outer)))

    def _read(self, path: Path) -> bytes:
        if not self.bounds.hold(path):
            raise UnusableError(f"it lies {OUTSIDE}")
        return read_file(path, str(path), self.seen[path])

    def _unread(self, within: str, path: Path) -> str | None:
        """Say why a file is not read, whatever it is; None where it may be."""
        if hidden(within):
            return "hidden"
        return "a link to nothing" if self.bounds.hold(path) and is_dangling(path) else None

    def _caption(self, name: str) -> str:
        """Read the caption of a name; UnusableError where there is none, or several that differ."""
        paths = self.texts.get(name, [])
        if not paths:
            looked = " and ".join(f"{printable(name)}{suffix}" for suffix in CAPTIONS)
            raise UnusableError(f"no caption: looked for {looked} in w, in l and above them")
        captions = set()
        for path in paths:
            place = self._place(path)
            try:
                content = self._read(path)
            except UnusableError as error:
                raise UnusableError(f"no caption: {place}: {error}") from None
            try:
                captions.add(text(content).strip())
            except UnusableError as error:
                raise UnusableError(f"the caption is not UTF-8: {place}: {error}") from None
        if len(captions) > 1:
            where = " and ".join(printable(str(path.relative_to(self.root))) for path in paths)
            raise UnusableError(f"the captions of its sides differ: {where}")
        return captions.pop()


def folders_of_pairs(root: Path, bounds: Bounds) -> list[str]:
    """List the folders that hold w and l, by their names within the source.

    They are the source itself, or those in it and within bounds, as of splits.
    """
    if not is_folder(root):
        return []
    if _has_sides(root):
        return [""]
    inside = patiently(lambda: sorted(path.name for path in root.iterdir()), printable(str(root)))
    return [name for name in inside if not hidden(name) and bounds.hold(root / name) and _has_sides(root / name)]


def _has_sides(root: Path) -> bool:
    return all(is_folder(root / side) for side in SIDES)


def _unordered(pair: Pair) -> Pair:
    return replace(pair, first=None)


def _name(within: str) -> str:
    """Return a file's name without extension, in one spelling of its letters: disks and tools have two."""
    return _composed(within.rsplit(".", 1)[0])


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_image(path: Path) -> bool:
    """Say whether a regular file whose name does not tell is an image, by its first bytes."""
    if not is_file(path):
        return False

    def head() -> bytes:
        with path.open("rb") as file:
            return file.read(_HEAD)

    content = patiently(head, printable(str(path)))
    try:
        with Image.open(BytesIO(content)):
            return True
    except Exception:  # PIL's decoders raise whatever they like
        return False


_HEAD = 1 << 16
