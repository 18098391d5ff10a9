"""Files that are either whole or absent, and names that follow from their content."""

from __future__ import annotations

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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to; it becomes `path` when the block ends well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if path.is_dir() and partial.is_dir():  # a file in place of a folder is nobody's wish: os.replace refuses
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
