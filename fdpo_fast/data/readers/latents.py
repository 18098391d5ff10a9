"""Pairs that were encoded elsewhere: parquet with latents, and text embeddings if there are some.

Columns: `caption`, `label_0`, `label_1` as in Pick-a-Pic; `latents_0`, `latents_1`, nested lists [c][h][w] of latents
that are scaled already; optional `original_size_0`, `original_size_1` [height, width] and `crop_0`, `crop_1`
[top, left] for micro-conditioning; optional text embeddings under the names of diffusers' pipelines, `prompt_embeds`
[tokens][dim] and `pooled_prompt_embeds` [dim].
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.pairs import Pair, ReadyLatents, Rejected, Rules, compared, short
from fdpo_fast.data.readers.parquet import ParquetPairs
from fdpo_fast.data.reading import UnusableError

_LATENTS = ("latents_0", "latents_1")
COLUMNS = ["caption", *_LATENTS, "label_0", "label_1"]
_GEOMETRY = ["original_size_0", "original_size_1", "crop_0", "crop_1"]
_LARGEST = 2**31 - 1  # of a size or crop
_SHOWN = 4  # lengths in a sentence
_LOOKED_AT = 16  # rows that tell which shape the others of their group have
EMBEDDINGS = ("prompt_embeds", "pooled_prompt_embeds", "prompt_mask")


class EncodedPairs(ParquetPairs):
    """Reader of latents in parquet; `source` as for `ParquetRows`.

    Raises UserError when a column is missing, or embeddings are not of one shape in all files.
    """

    def __init__(self, source: str, rules: Rules | None = None) -> None:
        super().__init__("latents", source, rules)
        embedded = [name for name in EMBEDDINGS if name in self.rows.names]
        geometry = [name for name in _GEOMETRY if name in self.rows.names]
        self.columns = COLUMNS + geometry + embedded
        self.rows.require(COLUMNS, "latents")
        self.rows.require(self.columns, "latents")
        self.embedded = {name: self._shape(name) for name in embedded}

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop); their sides are `ReadyLatents`."""
        for row, place, record in self.rows.read(start, stop, self.columns, (*_LATENTS, *self.embedded)):
            if isinstance(record, Rejected):
                yield record
                continue
            try:
                sides = _side(record, 0), _side(record, 1)
                embedded = {name: _finite(name, record[name]) for name in self.embedded}
                for name, shape in self.embedded.items():
                    if (found := embedded[name]).shape != shape:
                        raise UnusableError(
                            f"an embedding is of another shape: {name} is {found.shape}, others {shape}"
                        )
            except UnusableError as error:
                yield Rejected(place, str(error), row)
                continue
            labels = record["label_0"], record["label_1"]
            text = _text(embedded)
            for item in compared(row, 2 * row, place, record["caption"], sides, labels, self.rules):
                yield item if isinstance(item, Rejected) else replace(item, text=text)

    def embeddings(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, np.ndarray]]]:
        """Yield row, caption and text embeddings, in float32, of the rows [start, stop) that can be read."""
        for row, _, record in self.rows.read(start, stop, ["caption", *self.embedded], tuple(self.embedded)):
            with suppress(UnusableError):
                if isinstance(record, dict):
                    yield row, record["caption"], {name: numbers(name, record[name]) for name in self.embedded}

    def _shape(self, name: str) -> tuple[int, ...]:
        """Find the shape that most rows of an embedding have; UserError where that is another in some file.

        How many numbers a row group holds is in its file's footer: rows are read only where that says another shape.
        """
        shapes: dict[tuple[int, ...], str] = {}
        first = 0
        for file in self.rows.files:
            for group in range(file.parquet.num_row_groups):
                found = file.parquet.metadata.row_group(group)
                parts = [found.column(at) for at in range(found.num_columns)]
                values = sum(part.num_values for part in parts if part.path_in_schema.split(".")[0] == name)
                if not any(values == found.num_rows * math.prod(shape) for shape in shapes):
                    counts = self._shapes(name, first, found.num_rows)
                    shapes |= {shape: file.name for shape, _ in counts.most_common(1) if shape not in shapes}
                first += found.num_rows
        if len(shapes) > 1:
            said = ", ".join(f"{list(shape)} in {file}" for shape, file in shapes.items())
            raise UserError(f"'{name}' of data.source is not of one shape: {said}; encode all with one model")
        return next(iter(shapes), ())

    def _shapes(self, name: str, first: int, rows: int) -> Counter[tuple[int, ...]]:
        """Count the shapes of an embedding in the first of so many rows; those that cannot be read have none."""
        counts: Counter[tuple[int, ...]] = Counter()
        for _, _, record in self.rows.read(first, first + min(rows, _LOOKED_AT), [name], (name,)):
            with suppress(UnusableError):
                if isinstance(record, dict):
                    counts[numbers(name, record[name]).shape] += 1
        return counts


def _text(embedded: dict[str, np.ndarray]) -> int:
    """Return 63 bits that are equal for equal embeddings; 0 for none."""
    digest = hashlib.blake2b(digest_size=8)
    for values in embedded.values():
        digest.update(values.tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1 if embedded else 0


def _side(record: dict, side: int) -> ReadyLatents:
    """Read the latents of a side; UnusableError where something is wrong with them."""
    values = _finite(_LATENTS[side], record[_LATENTS[side]])
    if values.ndim != 3:
        raise UnusableError(f"latents are not [c][h][w]: {_LATENTS[side]} is {short(list(values.shape))}")
    size, crop = _two(record, f"original_size_{side}", 1), _two(record, f"crop_{side}", 0)
    return ReadyLatents(values, size, crop or (0, 0))


def _two(record: dict, name: str, least: int) -> tuple[int, int] | None:
    """Return two whole numbers of a row; None where it has none."""
    value = record.get(name)
    if value is None:
        return None
    good = isinstance(value, list) and len(value) == 2 and all(_whole(number, least) for number in value)
    if not good:
        raise UnusableError(
            f"original size or crop are not two whole numbers: found {short(value)} in {name}, each is to be {least} "
            f"or more, up to {_LARGEST}"
        )
    return int(value[0]), int(value[1])


def _whole(value: object, least: int) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and least <= value <= _LARGEST and value == int(value)  # type: ignore[operator, call-overload]


def _finite(name: str, cell: pa.Scalar) -> np.ndarray:
    values = numbers(name, cell)
    if not np.isfinite(values).all():
        raise UnusableError(f"not all numbers are finite: {name}")
    return values


def numbers(name: str, cell: pa.Scalar) -> np.ndarray:
    """Return nested lists as an array, float32.

    Raises UnusableError for what else there is, where rows differ in length, or a number is lacking.
    """
    if not _is_list(cell.type) or not cell.is_valid:
        raise UnusableError(f"numbers are lacking: {name} is {_found(cell)}")
    inner, shape = cell.values, [len(cell.values)]
    while _is_list(inner.type) and len(inner):
        lengths = pc.unique(pc.list_value_length(inner)).to_pylist()
        if inner.null_count or len(lengths) != 1:
            some = ", ".join(map(str, lengths[:_SHOWN])) + ", ..." * (len(lengths) > _SHOWN)
            raise UnusableError(f"rows differ in length: {name} has rows of {some} numbers")
        shape.append(lengths[0])
        inner = inner.flatten()
    if not len(inner):
        raise UnusableError(f"numbers are lacking: {name} is {_found(cell)}")
    if inner.null_count or not (pa.types.is_floating(inner.type) or pa.types.is_integer(inner.type)):
        raise UnusableError(f"numbers are lacking: {name} holds {'null' if inner.null_count else _found(inner[0])}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and found to be
        return inner.to_numpy(zero_copy_only=False).astype(np.float32).reshape(shape)


def _is_list(kind: pa.DataType) -> bool:
    """Say whether a type is one of lists; those of maps and structs are nested, too."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _found(cell: pa.Scalar) -> str:
    """Show a cell in a few letters: its value, or its type where Python has none for it."""
    try:
        return short(cell.as_py())
    except (ValueError, OverflowError, pa.ArrowException):
        return short(str(cell.type))
