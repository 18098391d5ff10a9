"""A configuration from its file: one strict JSON object of sections, over the file that it extends, with overrides.

`"extends": "sdxl_js.json"` takes another file as the base, found beside the file that names it; a base may extend
another. Sections are merged key by key as JSON Merge Patch does (RFC 7396): a value replaces the base's, lists as a
whole, and null takes the base's key away, so that its default holds. Whatever records a run records the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.mistakes import checked
from fdpo_fast.config.run import Config

EXTENDS = "extends"
"""The key of a file that is in no configuration."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file, with the files it extends, and apply `section.key=value` overrides.

    Raises UserError with one sentence per mistake.
    """
    raw = extended(Path(path))
    for override in overrides:
        _apply(raw, override)
    if odd := next((text for text in _strings(raw) if not _can_be_named(text)), None):
        raise UserError(f"{path}: {json.dumps(odd)} has a character that no file, caption or name can have")
    return checked(Config, raw, f"{path}: ")


def extended(path: Path, extending: tuple[Path, ...] = ()) -> dict:
    """Return the sections of a file over those of its base, unchecked; `extending` are the files on the way to it."""
    raw = _read(path, extending)
    if EXTENDS not in raw:
        return raw
    base = raw.pop(EXTENDS)
    if not isinstance(base, str) or not base:
        raise UserError(f"the config {path}: '{EXTENDS}' must be the path of a file, got {json.dumps(base)}")
    way = (*extending, path)
    try:
        base = path.parent / Path(base).expanduser()
        known = base.resolve() in [file.resolve() for file in way]
    except (OSError, RuntimeError, ValueError) as error:  # a home that is not there, a name that no file can have
        raise UserError(f"the config {path}: '{EXTENDS}' {json.dumps(str(base))} is no path: {error}") from None
    if known:
        raise UserError(f"the config {way[0]} extends itself: {' extends '.join(map(str, (*way, base)))}")
    return merged(extended(base, way), raw)


def _read(path: Path, extending: tuple[Path, ...]) -> dict:
    """Return the object in a file."""
    name = f"{path}, which {extending[-1]} extends" if extending else str(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {name}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"the config {name} is not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"the config {name} is nested too deeply") from None
    if not isinstance(raw, dict):
        raise UserError(f"the config {name} holds a {type(raw).__name__}, not an object of sections")
    return raw


def merged(base: Any, change: Any) -> Any:
    """Return the base with a change, as RFC 7396 merges them."""
    if not isinstance(change, dict):
        return change
    found = dict(base) if isinstance(base, dict) else {}
    for key, value in change.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


def _apply(raw: dict, override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or "." not in path:
        raise UserError(f"--set '{override}' is not of the form section.key=value")
    try:
        value = json.loads(text)
    except ValueError:
        value = text  # a bare word is a string
    *parents, key = path.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"--set '{override}': '{parent}' is not a section")
    node[key] = value


def _strings(raw: Any) -> Iterator[str]:
    """Yield all strings in a JSON value, keys included."""
    if isinstance(raw, str):
        yield raw
    elif isinstance(raw, dict):
        yield from raw
    if isinstance(raw, dict | list):
        for value in raw.values() if isinstance(raw, dict) else raw:
            yield from _strings(value)


def _can_be_named(text: str) -> bool:
    """Say whether a string has neither a zero byte nor half of a character, which JSON can both write."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
