"""The keys of a configuration as its schema declares them: what tables, explanations and mistakes say of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class Key(NamedTuple):
    """A key, or a section as a whole, whose `kind` is empty."""

    name: str
    """The keys on the way to it, joined by dots; `[]` behind a list of sections."""
    kind: str
    """What a value may be; choices in backticks."""
    default: str
    """What holds where the key is left out: JSON in backticks, or words."""
    meaning: str


@cache
def keys(section: type[BaseModel]) -> tuple[Key, ...]:
    """Return the keys of a section and of the sections within it, in their order, each section before its keys."""
    schema = section.model_json_schema()
    return tuple(_keys("", schema, schema.get("$defs", {})))


def _keys(path: str, found: dict[str, Any], sections: dict[str, dict]) -> Iterator[Key]:
    for name, value in found.get("properties", {}).items():
        within, listed = _section(value, sections), value.get("type") == "array"
        meaning = value.get("description", "")
        if within is not None and not listed:
            yield Key(path + name, "", "", meaning or within.get("description", "").split("\n")[0])
        else:
            yield Key(path + name, _kind(value), _default(name, value, found), meaning)
        if within is not None:
            yield from _keys(f"{path}{name}{'[]' * listed}.", within, sections)


def _section(found: dict[str, Any], sections: dict[str, dict]) -> dict | None:
    """Return the section that a key is, or holds in its list, or is beside null."""
    parts = [found, found.get("items", {}), *found.get("anyOf", [])]
    return next((sections[part["$ref"].rpartition("/")[2]] for part in parts if "$ref" in part), None)


def _kind(found: dict[str, Any]) -> str:
    """Return what a value may be."""
    if "anyOf" in found:
        return " or ".join(map(_kind, found["anyOf"]))
    if "enum" in found:
        return ", ".join(f"`{name}`" for name in found["enum"])
    if "prefixItems" in found:
        return f"list of {len(found['prefixItems'])}, each {_kind(found['prefixItems'][0])}"
    if found["type"] == "array":
        items = "objects" if "$ref" in found["items"] else _kind(found["items"])
        return f"list of {items}" + ", not empty" * bool(found.get("minItems"))
    bounds = [f"{sign} {_number(found[name])}" for name, sign in _BOUNDS.items() if name in found]
    return " ".join([found["type"], ", ".join(bounds)]).strip()


def _number(value: float) -> str:
    return "2^32" if value == 2**32 else f"{value:g}"


def _default(key: str, found: dict[str, Any], section: dict[str, Any]) -> str:
    """Return what holds where the key is left out."""
    if "left_out" in found:
        return found["left_out"]
    if key in section.get("required", []):
        return "required"
    return f"`{shown(found.get('default', {}))}`"  # a factory's is not in the schema: that of an object


def shown(value: Any) -> str:
    """Return a value as JSON, with the bare names that stand for sections which say nothing else."""
    if isinstance(value, list):
        value = [
            item["name"]
            if isinstance(item, dict) and "name" in item and not any(item[key] for key in item if key != "name")
            else item
            for item in value
        ]
    return json.dumps(value)
