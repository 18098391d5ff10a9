"""The files of a source: what of them is hidden, and which split their names put them in.

One rule for a folder here and a data set on the hub: where names tell splits, that of training is read, or the one that
`data.split` names; everything else is left out, and named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.pairs import LeftOut
from fdpo_fast.data.reading import patiently

ALL = "all"
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The names that the hub's data sets go by, and what they are short for."""
_KEYWORDS = {word: split for split, words in _SPLITS.items() for word in words}
_KEYWORD = re.compile(rf"(?:^|[^a-z])({'|'.join(sorted(_KEYWORDS, key=len, reverse=True))})(?=$|[^a-z])")
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?(-[0-9a-f]+)?$")


def split_of(path: str) -> tuple[str, str] | None:
    """Return the name of the split that a path within a source tells, and the split it is of; None where it does not.

    The file's own name counts before those of its folders.
    """
    *folders, file = path.split("/")
    for part in (file.rsplit(".", 1)[0], *reversed(folders)):
        name = _SHARD.sub("", part)
        if found := _KEYWORD.search(name.lower()):
            return name, _KEYWORDS[found[1]]
    return None


def choose(paths: list[str], wanted: str | None, source: str) -> tuple[list[str], str | None]:
    """Choose the paths of a split, by their names within the source; returns them and the split, None for no choice.

    Raises UserError where `wanted` is not there, or there are several splits and none of training.
    """
    splits = {path: split_of(path) for path in paths}
    names = sorted({split[0] for split in splits.values() if split})
    if wanted == ALL or (wanted is None and not names):
        return paths, None
    if wanted is not None:
        exact = [path for path, split in splits.items() if split and split[0] == wanted]
        chosen = exact or [path for path, split in splits.items() if split and split[1] == wanted]
        if not chosen:
            there = f"there are {', '.join(names)}" if names else "no name in it tells a split"
            raise UserError(f"data.split '{wanted}' is not in data.source '{source}': {there}")
        return chosen, wanted
    for first in ("train", None):
        if chosen := [path for path, split in splits.items() if (split and split[1]) == first]:
            return chosen, first
    if len({split[1] for split in splits.values() if split}) > 1:
        raise UserError(f"data.source '{source}' has no split of training but {', '.join(names)}: set data.split")
    return paths, names[0]


def outside_split(paths: Iterable[str]) -> Iterator[LeftOut]:
    """Yield the paths of other splits, each with the split it is of."""
    for path in paths:
        split = split_of(path)
        yield LeftOut(path, f"of the split {split[0]}" if split else "of no split")


def hidden(path: str) -> bool:
    """Say whether a path within a source is one that tools hide, as .ipynb_checkpoints/a.parquet is."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def local(source: str) -> Path:
    """Return a source as a path here."""
    return Path(source).expanduser()


def walk(root: Path, but: Collection[str] = ()) -> list[str]:
    """List the files below a folder, `but` those in some folders of it, by their paths within it, sorted.

    A link to a folder is followed once. Raises UnreachableError where a folder cannot be listed.
    """
    return patiently(lambda: _walk(root, but), str(root))


def _walk(root: Path, but: Collection[str]) -> list[str]:
    def fail(error: OSError) -> None:
        raise error

    found, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        if folder == str(root):
            folders[:] = [name for name in folders if name not in but]
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        within = os.path.relpath(folder, root)
        found += [file if within == "." else f"{within}/{file}" for file in files]
    return sorted(found)


def printable(name: str) -> str:
    """Return a name, or what a library says, as text that is safe on a terminal.

    Bytes that are no UTF-8, and signs that command a terminal, are written in hexadecimal.
    """
    decoded = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in decoded)
