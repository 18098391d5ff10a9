"""Pairs as two folders: `w/` holds the preferred images, `l/` the dispreferred ones, under equal names."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.decode import SUFFIXES
from fdpo_fast.data.pairs import LeftOut, Pair, Picture, Rejected, Rules, compared
from fdpo_fast.data.readers.splits import choose, hidden, local, outside_split, printable, walk
from fdpo_fast.data.reading import UnusableError, read_file, stamp, text
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

    def __init__(self, source: str, rules: Rules | None = None) -> None:
        root, rules = local(source), rules or Rules()
        found = folders_of_pairs(root)
        if not found:
            lacking = next((side for side in SIDES if not (root / side).is_dir()), "")
            raise UserError(f"data.source '{source}' has no folder '{lacking}': pairs are two folders, w and l")
        chosen, self.split = choose(found, rules.split, source) if found != [""] else (found, None)
        if len(chosen) > 1:
            raise UserError(f"data.source '{source}' has the folders of pairs {', '.join(chosen)}: name one of them")
        self.outer, self.root = root, root / chosen[0]
        self.images: list[Files] = []
        self.texts: Files = defaultdict(list)
        self._unused: list[LeftOut] = []
        for side in SIDES:
            self.images.append(self._images(side))
        for path in sorted(self.root.iterdir()):
            if path.suffix.lower() in CAPTIONS and path.is_file() and not hidden(path.name):
                self.texts[_name(path.name)].append(path)
        self.names = sorted(set().union(*self.images))
        if not self.names:
            raise UserError(f"data.source '{source}' has no image in its folders w and l")

    def _images(self, side: str) -> Files:
        """Find the image files of a side by their names without extension; captions are noted by the way."""
        files: Files = defaultdict(list)
        for within in walk(self.root / side):
            path = self.root / side / within
            if hidden(within):
                self._unused.append(LeftOut(f"{side}/{within}", "hidden"))
            elif path.suffix.lower() in CAPTIONS:
                self.texts[_name(within)].append(path)
            elif path.suffix.lower() in SUFFIXES and path.is_file():
                files[_name(within)].append(path)
            elif not any(letter.isalpha() for letter in path.suffix) and _is_image(path):
                files[_composed(within)].append(path)
            else:
                self._unused.append(LeftOut(f"{side}/{within}", "no image that is read"))
        return dict(files)

    def __len__(self) -> int:
        return len(self.names)

    def identity(self) -> dict:
        """Return the digests of the captions' content and of the images' names, sizes and times of change."""
        captions = [
            [name, hashlib.sha256(read_file(path, str(path))).hexdigest()]
            for name in self.names
            for path in self.texts.get(name, [])
        ]
        images = [
            [side, name, *stamp(path)]
            for side, files in zip(SIDES, self.images, strict=True)
            for name, paths in files.items()
            for path in paths
        ]
        return {"format": "folders", "rows": len(self), "captions": digest(captions), "images": digest(images)}

    def extent(self) -> tuple[int, int]:
        """Return how many pairs and images there are at most."""
        return len(self), 2 * len(self)

    def left_out(self) -> list[LeftOut]:
        """List the files of the source that are neither image nor caption of a pair."""
        captions = [
            LeftOut(str(path.relative_to(self.root)), "a caption without an image")
            for name, paths in self.texts.items()
            if name not in set(self.names)
            for path in paths
        ]
        texts = {path for paths in self.texts.values() for path in paths}
        beside = [name for name in walk(self.root, SIDES) if self.root / name not in texts]
        above = [LeftOut(name, "hidden" if hidden(name) else "neither in w nor in l") for name in beside]
        other = [
            LeftOut(name, "hidden" if hidden(name) else out.reason)
            for name in (walk(self.outer, (self.root.name,)) if self.outer != self.root else [])
            for out in outside_split([name])
        ]
        found = [*self._unused, *captions, *above, *other]
        return [LeftOut(printable(file), reason) for file, reason in found]

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the names [start, stop) in their order; ids are 2 * row, since nothing here is a tie."""
        for row, name in enumerate(self.names[start:stop], start):
            place = f"pair '{printable(name)}'"
            sides = [images.get(name, []) for images in self.images]
            without = [side for side, found in zip(SIDES, sides, strict=True) if not found]
            twice = [
                f"a name is there twice: {side} has {found[0].name} and {found[1].name}; remove one of them"
                for side, found in zip(SIDES, sides, strict=True)
                if len(found) > 1
            ]
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
        return Picture(printable(str(path.relative_to(self.root))), path)

    def _caption(self, name: str) -> str:
        """Read the caption of a name; UnusableError where there is none, or several that differ."""
        paths = self.texts.get(name, [])
        if not paths:
            looked = " and ".join(f"{printable(name)}{suffix}" for suffix in CAPTIONS)
            raise UnusableError(f"no caption: looked for {looked} in w, in l and above them")
        captions = set()
        for path in paths:
            place = printable(str(path.relative_to(self.root)))
            try:
                captions.add(text(read_file(path, str(path))).strip())
            except UnusableError as error:
                raise UnusableError(f"the caption is not UTF-8: {place}: {error}") from None
        if len(captions) > 1:
            where = " and ".join(printable(str(path.relative_to(self.root))) for path in paths)
            raise UnusableError(f"the captions of its sides differ: {where}")
        return captions.pop()


def folders_of_pairs(root: Path) -> list[str]:
    """List the folders that hold w and l: the source itself, or those in it, as of splits; by their names within it."""
    inside = [path.name for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    return [name for name in ("", *inside) if all((root / name / side).is_dir() for side in SIDES)][
        : 1 if all((root / side).is_dir() for side in SIDES) else None
    ]


def _unordered(pair: Pair) -> Pair:
    return Pair(pair.id, pair.place, pair.caption, pair.preferred, pair.dispreferred, row=pair.row)


def _name(within: str) -> str:
    """Return a file's name without extension, in one spelling of its letters: disks and tools have two."""
    return _composed(within.rsplit(".", 1)[0])


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_image(path: Path) -> bool:
    """Say whether a file whose name does not tell is an image, by its first bytes."""
    try:
        with Image.open(path):
            return path.is_file()
    except Exception:  # PIL's decoders raise whatever they like
        return False
