"""Captions to draw, from a configuration or from the files in which prompt sets are published."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fdpo_fast.config.errors import UserError

COLUMNS = ("prompt", "Prompt", "caption", "text")
"""The names that a column, or a key, of captions may have; PartiPrompts has "Prompt", Pick-a-Pic "caption"."""

SAID = {"evaluate.prompts": ", or give --prompts FILE"}
"""How else the captions that are the value of a key can be given."""


def read_prompts(prompts: str | list[str], key: str = "evaluate.prompts") -> list[str]:
    """Read the captions of a list, or of a file: one a line (txt), a table (tsv, csv, parquet), json or jsonl.

    key: what a list is the value of.

    Each once: repeated, it would give the same images again, and count as a caption of its own.

    Raises UserError where the file is missing, empty or broken, naming the line.
    """
    if isinstance(prompts, list):
        captions = [prompt.strip() for prompt in prompts]
        if not captions:
            raise UserError(f"no captions to draw: set {key}{SAID.get(key, '')}")
        where = key
    else:
        path = Path(prompts).expanduser()
        where = str(path)
        if path.suffix not in READERS:
            raise UserError(f"the prompt file {path} is of no known kind: use {', '.join(READERS)}")
        if not path.is_file():
            raise UserError(f"the prompt file {path} does not exist")
        try:
            captions = list(READERS[path.suffix](path))
        except csv.Error as error:
            raise UserError(f"the prompt file {path} is broken: {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"the prompt file {path} is not UTF-8 text: {error.reason} at {error.start}") from None
        if not captions:
            raise UserError(f"the prompt file {path} holds no captions")
    if "" in captions:
        raise UserError(f"{where}: caption {captions.index('') + 1} is empty")
    return list(dict.fromkeys(captions))


def _lines(path: Path) -> Iterator[str]:
    return (line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip())


def _comma_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and fields of each row of a comma-separated file."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, strict=True)
        for row in rows:
            yield rows.line_num, row


_QUOTED = re.compile(r'"([^"]|"")*"')


def _tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and fields of each row of a tab-separated file.

    Quotes are text here, but around a whole field, as spreadsheets write them.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        fields = line.rstrip("\r").split("\t") if line.strip() else []
        yield number, [f[1:-1].replace('""', '"') if _QUOTED.fullmatch(f) else f for f in fields]


def _table(path: Path) -> Iterator[str]:
    rows = (_tab_separated if path.suffix == ".tsv" else _comma_separated)(path)
    _, header = next(rows, (0, []))
    at = header.index(_column(path, header))
    for number, row in rows:
        if row and len(row) != len(header):
            raise UserError(
                f"the prompt file {path} is broken in line {number}: {len(row)} fields in place of {len(header)}"
            )
        if row:
            yield row[at].strip()


def _column(path: Path, names: list[str]) -> str:
    for name in COLUMNS:
        if name in names:
            return name
    raise UserError(f"the prompt file {path} has none of the columns {', '.join(COLUMNS)}")


def _json(path: Path) -> Iterator[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"the prompt file {path} is broken in line {error.lineno}: {error.msg}") from None
    if not isinstance(content, list):
        raise UserError(f"the prompt file {path} holds a {type(content).__name__}, not a list of captions")
    for number, item in enumerate(content, 1):
        yield _caption(path, f"item {number}", item)


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"the prompt file {path} is broken in line {number}: {error.msg}") from None
        yield _caption(path, f"line {number}", item)


def _caption(path: Path, where: str, item: Any) -> str:
    """Return the caption of an item that is one, or an object that holds one; UserError for anything else."""
    if isinstance(item, dict):
        item = item[_column(path, list(item))]
    if not isinstance(item, str):
        raise UserError(f"the prompt file {path} is broken in {where}: a {type(item).__name__} is no caption")
    return item.strip()


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        column = _column(path, file.schema_arrow.names)
        items = file.read([column]).column(column).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"the prompt file {path} is no parquet file: {error}") from None
    for number, item in enumerate(items, 1):
        yield _caption(path, f"row {number}", item)


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _lines,
    ".tsv": _table,
    ".csv": _table,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
