"""What is wrong with the keys of a section, in sentences of ours: pydantic finds it, the schema has the words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from fdpo_fast.config.errors import UserError, did_you_mean
from fdpo_fast.config.keys import Key, keys

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_LONGEST = 100
"""The most characters of a wrong value that are shown."""
_KINDS = {bool: ("boolean",), int: ("integer", "number"), float: ("number",), str: ("string",)}
"""The schema's names for what a value of JSON is."""

Checked = TypeVar("Checked", bound=BaseModel)


def checked(section: type[Checked], raw: Any, where: str = "") -> Checked:
    """Make a section of what was read; UserError with a sentence per mistake, behind the words that say where."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        known = {key.name: key for key in keys(section)}
        said = dict.fromkeys(_sentence(each, known) for each in error.errors(include_url=False))
        raise UserError(where + "; ".join(said)) from None


def _sentence(error: ErrorDetails, known: dict[str, Key]) -> str:
    if error["type"] == "value_error":  # of a rule of ours
        return str(error["ctx"]["error"])
    location, name = error["loc"], ""
    for depth, part in enumerate(location):
        deeper = f"{name}[]" if isinstance(part, int) else f"{name}.{part}" if name else part
        if deeper not in known and not isinstance(part, int):  # the names of choices, and keys of a value's own
            location = location[:depth]
            break
        name = deeper
    said = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        before, wrong = f"{said}." if said else "", _on_a_line(str(error["loc"][-1]))
        beside = [key.removeprefix(f"{name}." if name else "") for key in _within(name, known)]
        return f"unknown key '{before}{wrong}'{did_you_mean(wrong, beside, before, cutoff=0.3)}"
    if error["type"] == "missing" and not name.endswith("[]"):
        return f"the key '{said}' is missing"
    if not said:
        return f"there must be an object of keys, got {_shown(error['input'])}"
    if error["type"] == "missing":  # from a list that is too short
        name, said = name.removesuffix("[]"), said.rpartition(".")[0]
    kind = known[name].kind if name in known else _of_items(known[name.removesuffix("[]")].kind)
    return f"'{said}' must be {_wanted(kind)}, got {_shown(error['input'])}{_nearly(kind, error['input'])}"


def _within(name: str, known: Iterable[str]) -> Iterator[str]:
    """Yield the keys right under a section."""
    start = f"{name}." if name else ""
    return (key for key in known if key.startswith(start) and "." not in key.removeprefix(start))


def _of_items(kind: str) -> str:
    """Return the kind of a list's items."""
    listed = kind.rpartition(" or ")[2] if " or list of" in kind else kind
    return listed.partition("list of ")[2].rpartition("each ")[2].removesuffix(", not empty")


def _wanted(kind: str) -> str:
    """Return the kind of a value as a part of a sentence."""
    if kind in ("", "objects"):
        return "an object of keys" + " or a name" * bool(kind)
    if kind.startswith("`"):
        return f"one of {kind.replace('`', '')}"
    return ("an " if kind[0] in "aeio" else "a ") + kind


def _on_a_line(key: str) -> str:
    """Return a key with what would break the line, or not be seen, as JSON writes it."""
    return json.dumps(key, ensure_ascii=False)[1:-1]


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _nearly(kind: str, value: Any) -> str:
    """Return what to write instead, where a value can be read as one of the right kind."""
    fits = (other for other in _readings(value) if _is_a(kind, other))
    return next((f": write {json.dumps(other)}" for other in fits), "")


def _readings(value: Any) -> Iterator[Any]:
    """Yield what else a value may have been meant as."""
    if isinstance(value, str):
        with suppress(ValueError):
            yield json.loads(value.lower())
    elif isinstance(value, float) and value.is_integer():
        yield int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    if not isinstance(value, list):
        yield [value]


def _is_a(kind: str, value: Any) -> bool:
    if isinstance(value, list):
        return kind.startswith("list of ") and len(value) == 1 and _is_a(_of_items(kind), value[0])
    names = _KINDS.get(type(value), ())
    return not kind.startswith("list of ") and any(name in kind for name in names)
