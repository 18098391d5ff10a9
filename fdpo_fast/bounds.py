"""Folders that other people have filled: what is read there stays there, whatever their links and names say."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


class Bounds:
    """What may be read of a folder: what lies in it once all links are resolved.

    The folder itself may be a link. In the hub's cache, where files are links to `blobs` beside `snapshots`, those
    are within. `outside` takes the bounds away.
    """

    def __init__(self, folder: Path | str, outside: bool = False) -> None:
        real = os.path.realpath(folder)
        self._free = outside
        self._named = (os.path.abspath(folder), real)
        self._real = (real, *_blobs(real))
        self._resolved = lru_cache(maxsize=4096)(os.path.realpath)  # of folders: a folder holds many files

    def hold(self, path: Path | str) -> bool:
        """Say whether a path stays within; nothing is asked of the disk about one whose words lead out already."""
        if self._free:
            return True
        plain = os.path.abspath(path)
        if not any(_is_below(plain, root) for root in (*self._named, *self._real)):
            return False
        try:
            folder, name = os.path.split(path)
            real = os.path.join(self._resolved(folder), name)
            if name in (os.curdir, os.pardir, "") or os.path.islink(real):
                real = os.path.realpath(path)
        except ValueError:  # no file can have such a name: it is not there, rather than outside
            return True
        return any(_is_below(real, root) for root in self._real)


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _blobs(folder: str) -> list[str]:
    """List the folder that a snapshot in the hub's cache links to; none for any other folder."""
    repositories = (
        parent.parent for parent in (Path(folder), *Path(folder).parents) if parent.parent.name == "snapshots"
    )
    stores = (snapshots.parent / "blobs" for snapshots in repositories)
    return [str(store) for store in stores if store.is_dir() and not store.is_symlink()]
