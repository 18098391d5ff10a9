"""Where the parquet files of a source are: on a disk, behind a URL, or on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from fdpo_fast.config.errors import UserError, did_you_mean
from fdpo_fast.data.pairs import LeftOut
from fdpo_fast.data.readers.splits import hidden, local, walk
from fdpo_fast.data.reading import UnreachableError, patiently, printable
from fdpo_fast.files import is_hub_name

_PATTERN = "*?["


@dataclass(frozen=True)
class Found:
    """The parquet files of a source."""

    system: fsspec.AbstractFileSystem
    paths: dict[str, str]
    """The paths of parquet files, by their names within the source, sorted."""
    others: list[LeftOut]
    """What else is there."""
    alone: bool = False
    """Whether the source is that one file."""


def find(source: str) -> Found:
    """Find the parquet files of a `data.source`."""
    path = local(source)
    url = source if "://" in source else str(path)
    if "://" not in source and not path.exists() and _is_hub_path(source):
        url = f"hf://datasets/{source}"
    try:
        system, whole = fsspec.core.url_to_fs(url)
        whole = whole.rstrip("/") or whole
        root, pattern = _existing(system, whole)
        if isinstance(system, LocalFileSystem) and not os.path.exists(root or "/"):
            found = []
        elif pattern:
            found = _matches(system, root, pattern)
        else:
            found = [whole] if patiently(lambda: system.isfile(whole), whole) else _below(system, whole)
    except UnreachableError:
        raise
    except Exception as error:  # each file system and its network library has exceptions of its own
        what = "is not a path here, and as a data set of the hub it" if url.startswith("hf://") else ""
        words = (str(error).splitlines() or [""])[0]
        raise UserError(f"data.source '{source}' {what} cannot be read: {type(error).__name__}: {words}") from None
    if found == [whole]:
        return Found(system, {whole.rsplit("/", 1)[-1]: whole}, [], alone=True)
    within = {file[len(root.rstrip("/")) :].lstrip("/"): file for file in sorted(found)}
    tables = {name: file for name, file in within.items() if name.lower().endswith(".parquet") and not hidden(name)}
    broken = {name for name, file in tables.items() if os.path.islink(file) and not os.path.exists(file)}
    paths = {name: file for name, file in tables.items() if name not in broken}
    if not paths:
        beside = [name.name for name in path.parent.iterdir()] if path.parent.is_dir() else []
        lacks = "has no parquet file" if path.exists() else f"is not here{did_you_mean(path.name, beside)}"
        raise UserError(f"data.source '{source}' {lacks}: give a file, a folder, a glob or owner/name")
    rest = (name for name in within if name not in paths)
    reasons = (
        (name, "hidden" if hidden(name) else "a link to nothing" if name in broken else "no parquet file")
        for name in rest
    )
    others = [LeftOut(printable(name), reason) for name, reason in reasons]
    return Found(system, paths, others)


def _existing(system: fsspec.AbstractFileSystem, path: str) -> tuple[str, str]:
    """Divide a path where it stops to exist: what is there, and the pattern behind it."""
    if not any(sign in path for sign in _PATTERN) or system.exists(path):
        return path, ""
    parts = path.split("/")
    first = next(at for at, part in enumerate(parts) if any(sign in part for sign in _PATTERN))
    for length in range(len(parts) - 1, first, -1):  # a folder whose name looks like a pattern
        if system.exists("/".join(parts[:length])):
            first = length
            break
    return "/".join(parts[:first]), "/".join(parts[first:])


def _glob(root: str, pattern: str) -> str:
    """Put a path and the pattern behind it together, so that nothing of the path counts as a pattern."""
    return "".join(f"[{letter}]" if letter in _PATTERN else letter for letter in root) + "/" + pattern


def is_here(source: str) -> bool:
    """Say whether a source is a path on this machine, or a pattern of some."""
    if "://" in source:
        return False
    system = fsspec.filesystem("file")
    root, pattern = _existing(system, str(local(source).absolute()))
    return bool(system.glob(_glob(root, pattern))) if pattern else system.exists(root)


def _below(system: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """List the files below a folder; what fsspec leaves out where a folder here cannot be listed is an error."""
    if not isinstance(system, LocalFileSystem):
        return list(system.find(folder))
    return [f"{folder.rstrip('/')}/{name}" for name in walk(Path(folder))]


def _matches(system: fsspec.AbstractFileSystem, root: str, pattern: str) -> list[str]:
    """List the files that a pattern behind a path matches, and those below the folders that it matches."""
    here = isinstance(system, LocalFileSystem)
    if here and "**" in pattern:
        sign = re.compile(glob_translate(pattern))
        return [name for name in _below(system, root) if sign.match(name[len(root.rstrip("/")) + 1 :])]
    if here:
        patiently(lambda: os.scandir(root or "/").close(), root)
    found = system.glob(_glob(root, pattern))
    return [below for match in found for below in (_below(system, match) if _is_folder(system, match) else [match])]


def _is_folder(system: fsspec.AbstractFileSystem, path: str) -> bool:
    return patiently(lambda: system.info(path)["type"] == "directory", path)


def _is_hub_path(source: str) -> bool:
    """Say whether a source that is no path here could be `owner/name` on the hub, or a folder in it."""
    name = "/".join(source.split("/")[:2])
    return is_hub_name(name) and not source.endswith(".parquet") and not any(sign in source for sign in _PATTERN)
