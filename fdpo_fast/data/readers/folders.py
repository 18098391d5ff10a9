"""Pairs as two folders: `w/` holds the preferred images, `l/` the dispreferred ones, under equal names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.pairs import Pair, Rejected
from fdpo_fast.files import digest, file_digest, stamp

SIDES = ("w", "l")


class Folders:
    """Reader of `<source>/w` and `<source>/l`, with a caption in `NAME.txt` beside either image or in `<source>`.

    The extensions of the two images may differ; a name with two images on one side is refused, and the others are read.
    There are no ties in this format. Raises UserError when one of the folders is missing or no image is there.
    """

    def __init__(self, source: str, ties: str = "drop") -> None:
        self.root = Path(source).expanduser()
        for side in SIDES:
            if not (self.root / side).is_dir():
                raise UserError(f"data.source '{source}' has no folder '{side}': pairs are two folders, w and l")
        self.images = [_images(self.root / side) for side in SIDES]
        self.names = sorted(set().union(*self.images))
        if not self.names:
            raise UserError(f"data.source '{source}' has no image in its folders w and l")

    def __len__(self) -> int:
        return len(self.names)

    def identity(self) -> dict:
        """Return the digests of the captions' content and of the images' names, sizes and times of change."""
        captions = [[name, file_digest(path)] for name in self.names for path in self._captions(name)]
        images = [
            [side, *stamp(path)]
            for side, files in zip(SIDES, self.images, strict=True)
            for paths in files.values()
            for path in paths
        ]
        return {"format": "folders", "rows": len(self), "captions": digest(captions), "images": digest(images)}

    def _captions(self, name: str) -> list[Path]:
        folders = (*(self.root / side for side in SIDES), self.root)
        return [path for folder in folders if (path := folder / f"{name}.txt").is_file()]

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the names [start, stop) in their order; ids are 2 * row, since nothing here is a tie."""
        for row, name in enumerate(self.names[start:stop], start):
            place = f"pair '{name}'"
            sides = [images.get(name, []) for images in self.images]
            without = [side for side, found in zip(SIDES, sides, strict=True) if not found]
            twice = [
                f"{side} has {found[0].name} and {found[1].name}: remove one of them"
                for side, found in zip(SIDES, sides, strict=True)
                if len(found) > 1
            ]
            captions: set[str] = set()
            try:
                captions = {path.read_text(encoding="utf-8-sig").strip() for path in self._captions(name)}
            except UnicodeDecodeError:
                yield Rejected(place, "the caption is not UTF-8")
                continue
            if without:
                yield Rejected(place, f"no image in {without[0]}")
            elif twice:
                yield Rejected(place, twice[0])
            elif len(captions) != 1:
                yield Rejected(place, "the captions of its sides differ" if captions else "no caption")
            else:
                (preferred,), (dispreferred,) = sides
                yield Pair(2 * row, place, captions.pop(), preferred, dispreferred)


def _images(folder: Path) -> dict[str, list[Path]]:
    """Find the image files of a folder by their names without extension."""
    known, files = Image.registered_extensions(), defaultdict[str, list[Path]](list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in known or path.name.startswith(".") or not path.is_file():
            continue
        files[path.stem].append(path)
    return dict(files)
