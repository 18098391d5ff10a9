"""The keys of a configuration as Markdown tables, from the schema.

`python -m fdpo_fast.config.table configs/README.md` renews them between the lines `BEGIN` and `END` of that page, where
a test holds them to the schema; without a file they are printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fdpo_fast.config.keys import keys
from fdpo_fast.config.run import Config

BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
HEADER = ("| key | value | default | |", "|---|---|---|---|")


def tables() -> str:
    """Return a table for each section."""
    lines: list[str] = []
    for section in Config.model_fields:
        rows = [key for key in keys(Config) if key.name.startswith(f"{section}.") and key.kind]
        lines += [f"### `{section}`", ""]
        if rows:
            cells = ((f"`{key.name}`", *key[1:]) for key in rows)
            lines += [*HEADER, *(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in cells), ""]
        else:
            lines += [next(key.meaning for key in keys(Config) if key.name == section), ""]
    return "\n".join(lines)


def renewed(text: str) -> str:
    """Return a page with today's tables between its marks; ValueError where it has none."""
    before, _, behind = text.partition(BEGIN)
    _, mark, after = behind.partition(END)
    if not mark:
        raise ValueError(f"there are no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:]:
        page = Path(sys.argv[1])
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables())
