"""Mistakes in the section `deepspeed`: keys that DeepSpeed does not know, which it may overlook, and what it refuses.

What it knows stands in the sources that are installed, which are read and not imported: that would take seconds.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdpo_fast.config.errors import did_you_mean

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_NAME = re.compile(r"[a-z]\w+")
_DEEP = ("zero_optimization",)
"""Sections without names of a user's own at any depth; in others those begin below the section's keys."""


def unknown(section: dict[str, Any]) -> list[str]:
    """Return a sentence for each key that DeepSpeed does not know; none where it is not installed."""
    known = _known() if section else None
    return [
        f"deepspeed.{path} is no key that DeepSpeed knows{did_you_mean(key, known, cutoff=0.7)}"
        for path, key in _keys(section)
        if known and key not in known
    ]


def refused(section: dict[str, Any], error: ValidationError) -> str:
    """Return what DeepSpeed refuses of the section, a sentence for each value that its own models do not take."""
    return "; ".join(_refusal(section, each) for each in error.errors(include_url=False))


def _refusal(section: dict[str, Any], error: ErrorDetails) -> str:
    location = error["loc"]
    homes = (name for name, value in section.items() if isinstance(value, dict) and location[0] in value)
    path = ".".join(map(str, ("deepspeed", *islice(homes, 1), *location)))
    if error["type"] == "extra_forbidden":
        return f"{path} is no key that DeepSpeed takes{did_you_mean(str(location[-1]), _known(), cutoff=0.7)}"
    takes = f": it takes {expected}" if (expected := error.get("ctx", {}).get("expected")) else ""
    return f"DeepSpeed does not take {json.dumps(error['input'], default=str)} for {path}{takes}"


def _keys(section: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield path and name of the keys that are DeepSpeed's to know."""

    def within(path: str, value: Any, depth: float) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and depth:
            for key, inner in value.items():
                yield f"{path}{key}", key
                yield from within(f"{path}{key}.", inner, depth - 1)

    for key, value in section.items():
        yield key, key
        yield from within(f"{key}.", value, float("inf") if key in _DEEP else 1)


@cache
def _known() -> frozenset[str]:
    """Return the names in DeepSpeed's own configuration: its models' fields, and the words in files of constants."""
    spec = find_spec("deepspeed")
    names = set()
    for folder in (spec and spec.submodule_search_locations) or ():
        for pattern in ("*config.py", "constants.py"):
            for file in Path(folder).rglob(pattern):
                names |= set(_names(file))
    return frozenset(names)


def _names(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
            yield node.value
