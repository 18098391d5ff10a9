"""The files of a source: what of them is hidden, and which split their names put them in.

One rule for a folder here and a data set on the hub: where names tell splits, that of training is read, or the one that
`data.split` names; everything else is left out, and named.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from fdpo_fast.bounds import Bounds
from fdpo_fast.config.errors import UserError
from fdpo_fast.data.pairs import LeftOut
from fdpo_fast.data.reading import OF_A_NAME, UnreachableError, patiently, printable, status

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
        kind = _KEYWORDS.get(wanted, wanted)
        chosen = exact or [path for path, split in splits.items() if split and split[1] == kind]
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
    return any(part.startswith(".") or part in _SYSTEMS for part in path.split("/"))


_SYSTEMS = ("__MACOSX", "lost+found")


def local(source: str) -> Path:
    """Return a source as a path here; UserError where no path can be of that name."""
    try:
        path = Path(source).expanduser()
        os.stat(path)
    except (RuntimeError, ValueError) as error:  # no such user; a zero in the name
        raise UserError(f"data.source '{source}' is no path: {error}") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UserError(f"data.source '{source}' is no path: {error.strerror}") from None
    return path


def walk(root: Path, but: Collection[str] = (), bounds: Bounds | None = None) -> list[str]:
    """List what is below a folder and no folder, `but` those in some folders of it, by paths within it, sorted.

    Links to folders are followed, but for those that lead back; those that lead out of `bounds` count as files. Raises
    UnreachableError where a folder cannot be listed, unless it is a hidden one.
    """
    found: list[str] = []
    parents = (status(folder) for folder in Path(os.path.realpath(root)).parents)
    _walk(root, "", tuple((one.st_dev, one.st_ino) for one in parents if one), but, bounds, found)
    return sorted(found)


def _walk(
    folder: Path, within: str, above: tuple, but: Collection[str], bounds: Bounds | None, found: list[str]
) -> None:
    def listed() -> tuple[tuple[int, int], list[tuple[str, bool]]]:
        here = folder.stat()
        with os.scandir(folder) as entries:
            return (here.st_dev, here.st_ino), [(entry.name, _leads_to_folder(entry, bounds)) for entry in entries]

    try:
        own, entries = patiently(listed, printable(str(folder)))
    except UnreachableError:
        if not hidden(within):
            raise
        return
    if own in above:
        return
    for name, is_dir in entries:
        path = f"{within}/{name}" if within else name
        if not is_dir:
            found.append(path)
        elif within or name not in but:
            _walk(folder / name, path, (*above, own), but, bounds, found)


def _leads_to_folder(entry: os.DirEntry, bounds: Bounds | None) -> bool:
    try:
        return entry.is_dir() and not (bounds and entry.is_symlink() and not bounds.hold(entry.path))
    except OSError as error:  # a link that leads in circles
        if error.errno in OF_A_NAME:
            return False
        raise
