"""What a run has written to `metrics.jsonl`, read however much of it has suffered."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from fdpo_fast.config.errors import UserError

FILE = "metrics.jsonl"
BINS = ("bins", "validation_bins")
"""What of a record is by the noise level: of the steps since the last flush, and of the held-out pairs."""
_MOST = 2**53
"""More steps than a run takes, and the first integer that a float may not hold."""


class Records(NamedTuple):
    """The records that can be read, in the order of their steps, one a step."""

    records: list[dict]
    left_out: int
    """Lines that are no record of a step of the run, or of one that a later line is of too."""


def read_metrics(folder: Path, steps: int = _MOST) -> Records:
    """Read the records of a run of so many steps; half of a last line, which a kill or a write leaves, does not count.

    Raises UserError where the file cannot be read at all.
    """
    file = folder / FILE
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is no file: put it elsewhere")
        lines = file.read_bytes().split(b"\n") if file.exists() else [b""]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    whole = [line for line in lines[:-1] if line.strip()]
    found = [record for line in whole if (record := _record(line, steps))]
    left_out = len(whole)
    if last := _record(lines[-1], steps):
        found.append(last)
        left_out += 1
    by_step = {record["step"]: record for record in found}
    return Records([by_step[step] for step in sorted(by_step)], left_out - len(by_step))


def read_records(folder: Path) -> list[dict]:
    """Return the records of a run that can be read."""
    return read_metrics(folder).records


def _record(line: bytes, steps: int) -> dict[str, Any] | None:
    """Read a line, null being NaN; None where it is no record of one of so many steps."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(step := record.get("step")) is not int or not 0 <= step < steps:
        return None
    figures = dict(record)
    warnings, *bins = (figures.pop(key, []) for key in ("warnings", *BINS))
    good = _are_figures(figures) and _are(warnings, str)
    good = good and all(_are(each, dict) and all(map(_is_bin, each)) for each in bins)
    return {key: math.nan if value is None else value for key, value in record.items()} if good else None


def _is_bin(found: dict) -> bool:
    figures = dict(found)
    edges = figures.pop("timesteps", None)
    return _are(edges, int) and len(edges) == 2 and _are_figures(figures)


def _are(found: object, kind: type) -> bool:
    return isinstance(found, list) and all(isinstance(value, kind) for value in found)


def _are_figures(found: dict) -> bool:
    return all(value is None or _is_figure(value) for value in found.values())


def _is_figure(value: object) -> bool:
    """Say whether a value is a number that a float can hold; JSON's integers have no end."""
    return isinstance(value, float) or (type(value) is int and abs(value) < _MOST)
