"""Where the parquet files of a source are: on a disk, behind a URL, or on the hub."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fdpo_fast.bounds import Bounds
from fdpo_fast.config.errors import UserError, did_you_mean
from fdpo_fast.data.pairs import OUTSIDE, LeftOut
from fdpo_fast.data.readers.splits import hidden, local, walk
from fdpo_fast.data.reading import UnreachableError, is_dangling, is_folder, patiently, printable, status
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


def find(source: str, outside: bool = False) -> Found:
    """Find the parquet files of a `data.source`, those `outside` it that it links to among them."""
    path = local(source)
    url = source if "://" in source else str(path)
    if "://" not in source and status(path) is None and _is_hub_path(source):
        url = f"hf://datasets/{source}"
    try:
        system, whole = fsspec.core.url_to_fs(url)
        whole = whole.rstrip("/") or whole
        root, pattern = _existing(system, whole)
        bounds = Bounds(root or "/", outside or not isinstance(system, LocalFileSystem))
        if isinstance(system, LocalFileSystem) and status(root or "/") is None:
            found = []
        elif pattern:
            found = _matches(system, root, pattern, bounds)
        else:
            found = [whole] if patiently(lambda: system.isfile(whole), whole) else _below(system, whole, bounds)
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
    here = isinstance(system, LocalFileSystem)
    broken = {name for name, file in tables.items() if here and is_dangling(file)}
    out = {name for name, file in within.items() if name not in broken and not bounds.hold(file)}
    paths = {name: file for name, file in tables.items() if name not in broken | out}
    if not paths and (out or ("**" in pattern and not all(map(bounds.hold, _below(system, root, bounds))))):
        raise UserError(f"data.source '{source}' has no parquet file but by links that lead {OUTSIDE}: set it to true")
    if not paths:
        beside = [name.name for name in path.parent.iterdir()] if path.parent.is_dir() else []
        lacks = "has no parquet file" if status(path) else f"is not here{did_you_mean(path.name, beside)}"
        raise UserError(f"data.source '{source}' {lacks}: give a file, a folder, a glob or owner/name")
    others = []
    for name in (name for name in within if name not in paths):
        linked = "a link to nothing" if name in broken else OUTSIDE if name in out else "no parquet file"
        others.append(LeftOut(printable(name), "hidden" if hidden(name) else linked))
    return Found(system, paths, others)


def _existing(system: fsspec.AbstractFileSystem, path: str) -> tuple[str, str]:
    """Divide a path where it stops to exist: what is there, and the pattern behind it."""
    if not any(sign in path for sign in _PATTERN) or _exists(system, path):
        return path, ""
    parts = path.split("/")
    first = next(at for at, part in enumerate(parts) if any(sign in part for sign in _PATTERN))
    for length in range(len(parts) - 1, first, -1):  # a folder whose name looks like a pattern
        if _exists(system, "/".join(parts[:length])):
            first = length
            break
    return "/".join(parts[:first]), "/".join(parts[first:])


def _exists(system: fsspec.AbstractFileSystem, path: str) -> bool:
    return status(path) is not None if isinstance(system, LocalFileSystem) else system.exists(path)


def is_here(source: str) -> bool:
    """Say whether a source is a path on this machine, or a pattern of some."""
    if "://" in source:
        return False
    system = fsspec.filesystem("file")
    root, pattern = _existing(system, str(local(source).absolute()))
    return bool(_expand(root, pattern, Bounds(root or "/"))) if pattern else status(root) is not None


def _below(system: fsspec.AbstractFileSystem, folder: str, bounds: Bounds) -> list[str]:
    """List the files below a folder; what fsspec leaves out where a folder here cannot be listed is an error."""
    if not isinstance(system, LocalFileSystem):
        return list(system.find(folder))
    return [f"{folder.rstrip('/')}/{name}" for name in walk(Path(folder), bounds=bounds)]


def _matches(system: fsspec.AbstractFileSystem, root: str, pattern: str, bounds: Bounds) -> list[str]:
    """List the files that a pattern behind a path matches, and those below the folders that it matches."""
    if isinstance(system, LocalFileSystem):
        found = [(match, is_folder(match)) for match in _expand(root, pattern, bounds)]
    else:
        literal = "".join(f"[{letter}]" if letter in _PATTERN else letter for letter in root)
        found = [(match, system.isdir(match)) for match in system.glob(f"{literal}/{pattern}")]
    return list(
        dict.fromkeys(
            file for match, folder in found for file in (_below(system, match, bounds) if folder else [match])
        )
    )


def _expand(folder: str, pattern: str, bounds: Bounds) -> list[str]:
    """List the paths here that a pattern matches. Unlike glob's, it fails where a folder cannot be listed."""
    part, _, rest = pattern.partition("/")
    if part == "**":
        deep = walk(Path(folder or "/"), bounds=bounds)
        folders = {"", *(name[:at] for name in deep for at, letter in enumerate(name) if letter == "/")}
        if not rest:
            return [f"{folder}/{name}" for name in deep]
        return [match for name in sorted(folders) for match in _expand(f"{folder}/{name}".rstrip("/"), rest, bounds)]
    if not is_folder(folder or "/"):
        return []
    names = patiently(lambda: _names(folder or "/"), printable(folder))
    matches = [f"{folder}/{name}" for name in names if fnmatch.fnmatchcase(name, part)]
    return [found for match in matches for found in (_expand(match, rest, bounds) if rest else [match])]


def _names(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def _is_hub_path(source: str) -> bool:
    """Say whether a source that is no path here could be `owner/name` on the hub, or a folder in it."""
    name = "/".join(source.split("/")[:2])
    return is_hub_name(name) and not source.endswith(".parquet") and not any(sign in source for sign in _PATTERN)
