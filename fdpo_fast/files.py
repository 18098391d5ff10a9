"""Files that are either whole or absent, and names that follow from their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fdpo_fast.config.errors import UserError


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def expanded(path: str | Path, key: str) -> Path:
    """Return the path that is the value of a key, `~` replaced by the home folder; UserError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{key} '{path}' begins with a home folder that is not known here: give it in full") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; UserError that names it where it cannot be read, or is broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): mend or delete it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not valid JSON (no object in braces): mend or delete it")
    return value


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def stamp(path: Path) -> list:
    """Return name, size and time of change of a file; they tell another content without reading it."""
    if not path.is_file():
        return [path.name, None, None]
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


_PARTIAL = re.compile(r"\..+\.(\d+)\.partial")
_OF_SAFETENSORS = re.compile(r"\.tmp[0-9A-Za-z]{6}")


def clear_partial(folder: Path, alone: bool = False) -> None:
    """Delete what killed processes of ours have left half written in a folder, though not in the folders in it.

    What a live process is writing stays, unless we are `alone` there, by a lock: then it is another's number that has
    come again, and what safetensors writes to first goes, too.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _PARTIAL.fullmatch(path.name)
        if (found and (alone or not _is_alive(int(found[1])))) or (alone and _OF_SAFETENSORS.fullmatch(path.name)):
            with suppress(FileNotFoundError):  # another start clears it, too
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _is_alive(process: int) -> bool:
    """Say whether another process has this number: what bears our own is from before, as in a container."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return process != os.getpid()


def is_hub_name(name: str) -> bool:
    """Say whether a name can be that of a repository on the hub, `owner/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its __all__ is computed

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def settle(partial: Path, path: Path) -> None:
    """Give a file or folder that was written under another name its own, so that a power cut leaves it whole or absent.

    Its bytes reach the disk first, then the names of its files, then its own name; that is on the disk at the return.
    """
    for folder, _, names in os.walk(partial, topdown=False):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))
    if not partial.is_dir():
        flush(partial)
    elif path.is_dir() and not path.is_symlink():  # a file in place of a folder is nobody's wish: os.replace refuses
        shutil.rmtree(path)
    os.replace(partial, path)
    flush(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, where it is missing: on the disk at the return."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush(folder.parent)


def made(path: Path, key: str) -> Path:
    """Make a folder that is the value of a key, where it is missing; UserError where it cannot be. Returns it."""
    try:
        make_folder(path)
    except OSError as error:
        raise UserError(f"{key} '{path}' cannot be made: {error.strerror}") from None
    return path


def flush(path: Path) -> None:
    """Return once the bytes of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of a file system that has no such wish for a folder
            raise
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to; it becomes `path` when the block ends well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(partial)  # of a killed process that had our number, as the first ones of a container have
    try:
        yield partial
        settle(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
