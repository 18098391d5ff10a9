"""The checksums of a folder, in a file beside what they are of: checkpoints and exports are checked by them.

The sum is the caches', CRC-32. A folder is read once, from the page cache, after it was written, at 3 GiB/s or so.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fdpo_fast.config.errors import UserError

NAME = "checksums.json"
"""Of the file, in the folder; diffusers and DeepSpeed read it for nothing."""
UNPICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".py")
"""The endings of files that can run code when they are read: none is there that was not written with the others."""

Sums = dict[str, tuple[int, int]]
"""Size and CRC-32 by the names of files."""


def names_in(folder: Path) -> list[str]:
    """Return the names of all files in a folder and below, but for the one of checksums."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != NAME)


def sums(folder: Path, names: Iterable[str]) -> Sums:
    """Return size and checksum of files, by reading them."""
    return {name: _sum(folder / name) for name in names}


def write(folder: Path, found: Sums, **facts: Any) -> None:
    """Write the file of checksums, with what else is to be known of the folder before any of it is read."""
    (folder / NAME).write_text(_text({"files": found, **facts}))


def facts_of(folder: Path) -> dict[str, Any]:
    """Return what was written beside the checksums of a folder, and those; nothing where it has none.

    Raises UserError where the file is not as it was written.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not as it was written")
    content.pop("crc", None)
    if path.read_text() != _text(content):
        raise UserError(f"{path} does not match its own checksum")
    return content


def damage(folder: Path, part: int = 0, of: int = 1) -> str | None:
    """Return what is wrong with a folder in a few words; None where it is as it was written, or has no checksums.

    Of `of` equal parts of its files that one alone is read.
    """
    try:
        if not folder.is_dir():
            return "it is no folder"
        content = facts_of(folder)
        if not content:
            return None if names_in(folder) else "it is empty"
        wanted: dict[str, list[int]] = content["files"]
        for name in sorted(wanted)[part::of]:
            file, (size, sum_of) = folder / name, wanted[name]
            if not file.is_file():
                return f"{name} is {'no file' if file.exists() else 'missing'}"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes of {size}"
            if _sum(file)[1] != sum_of:
                return f"{name} does not match its checksum"
        foreign = [name for name in names_in(folder) if name.endswith(UNPICKLED) and name not in wanted]
        return f"{foreign[0]} was not written with it" if foreign else None
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"


def _sum(file: Path) -> tuple[int, int]:
    size = total = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            size, total = size + len(block), zlib.crc32(block, total)
    return size, total


def _text(content: dict[str, Any]) -> str:
    own = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    return json.dumps(content | {"crc": own}, indent=1, sort_keys=True) + "\n"
