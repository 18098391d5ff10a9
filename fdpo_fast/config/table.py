"""The keys of a configuration as Markdown tables, from the schema.

`python -m fdpo_fast.config.table configs/README.md` renews them between the lines `BEGIN` and `END` of that page, where
a test holds them to the schema; without a file they are printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fdpo_fast.config.run import Config

BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
HEADER = ("| key | value | default | |", "|---|---|---|---|")


def tables() -> str:
    """Return a table for each section."""
    schema = Config.model_json_schema()
    lines: list[str] = []
    for section, found in schema["properties"].items():
        rows = list(_rows(section, found, schema["$defs"]))
        lines += [f"### `{section}`", "", *((*HEADER, *rows) if rows else [found["description"]]), ""]
    return "\n".join(lines)


def renewed(text: str) -> str:
    """Return a page with today's tables between its marks; ValueError where it has none."""
    before, _, behind = text.partition(BEGIN)
    _, mark, after = behind.partition(END)
    if not mark:
        raise ValueError(f"there are no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def _rows(path: str, found: dict[str, Any], sections: dict[str, dict]) -> Iterator[str]:
    """Return the rows of the keys under a section, those of the sections within it included."""
    section = _section(found, sections) or {}
    for key, value in section.get("properties", {}).items():
        name, within = f"{path}.{key}", _section(value, sections)
        if within is None or value.get("type") == "array":
            cells = (f"`{name}`", _kind(value), _default(key, value, section), value.get("description", ""))
            yield f"| {' | '.join(cells)} |".replace("|  |", "| |")
        if within is not None:
            yield from _rows(f"{name}[]" if value.get("type") == "array" else name, value, sections)


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
    if found["type"] == "array":
        items = found.get("prefixItems") or [found["items"]]
        return "list of " + ("objects" if "$ref" in items[0] else _kind(items[0]))
    # 2^32 bounds what must fit a word of a counter, and is no advice
    bounds = [f"{sign} {found[name]:g}" for name, sign in BOUNDS.items() if found.get(name) not in (None, 2**32)]
    return " ".join([found["type"], ", ".join(bounds)]).strip()


def _default(key: str, found: dict[str, Any], section: dict[str, Any]) -> str:
    """Return what holds where the key is left out."""
    if "left_out" in found:
        return found["left_out"]
    if key in section.get("required", []):
        return "required"
    default = found["default"]
    if isinstance(default, list):  # sections that a bare name stands for
        default = [value["name"] if isinstance(value, dict) else value for value in default]
    return f"`{json.dumps(default)}`"


if __name__ == "__main__":
    if sys.argv[1:]:
        page = Path(sys.argv[1])
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables())
