"""Pairs that were encoded elsewhere: parquet with latents, and text embeddings if there are some.

Columns: `caption`, `label_0`, `label_1` as in Pick-a-Pic; `latents_0`, `latents_1`, nested lists [c][h][w] of latents
that are scaled already; optional `original_size_0`, `original_size_1` [height, width] and `crop_0`, `crop_1`
[top, left] for micro-conditioning; optional text embeddings under the names of diffusers' pipelines, `prompt_embeds`
[tokens][dim] and `pooled_prompt_embeds` [dim].
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fdpo_fast.data.pairs import Pair, ReadyLatents, Rejected, compared
from fdpo_fast.data.readers.parquet import ParquetRows

COLUMNS = ["caption", "latents_0", "latents_1", "label_0", "label_1"]
_GEOMETRY = ["original_size_0", "original_size_1", "crop_0", "crop_1"]
EMBEDDINGS = ["prompt_embeds", "pooled_prompt_embeds"]


class EncodedPairs:
    """Reader of latents in parquet; `source` as for `ParquetRows`. Raises UserError when a column is missing."""

    def __init__(self, source: str, ties: str = "drop") -> None:
        self.rows, self.ties = ParquetRows(source), ties
        self.rows.require(COLUMNS, "latents")
        self.geometry = [name for name in _GEOMETRY if name in self.rows.names]
        self.embedded = [name for name in EMBEDDINGS if name in self.rows.names]

    def __len__(self) -> int:
        return len(self.rows)

    def identity(self) -> dict:
        """Return what is done with ties, and each file's name, size and footer."""
        return {"format": "latents", "ties": self.ties, "files": self.rows.identity()}

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop); their sides are `ReadyLatents`."""
        for row, place, record in self.rows.read(start, stop, COLUMNS + self.geometry):
            first, second = _side(record, 0), _side(record, 1)
            if isinstance(first, str):
                yield Rejected(place, first)
            elif isinstance(second, str):
                yield Rejected(place, second)
            else:
                labels = record["label_0"], record["label_1"]
                yield from compared(2 * row, place, record["caption"], (first, second), labels, self.ties)

    def embeddings(self, start: int, stop: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield the captions of the rows [start, stop) with their text embeddings in float32."""
        for _, _, record in self.rows.read(start, stop, ["caption", *self.embedded]):
            yield record["caption"], {name: np.asarray(record[name], np.float32) for name in self.embedded}


def _side(record: dict, side: int) -> ReadyLatents | str:
    """Read the latents of a side, or say what is wrong with them."""
    try:
        values = np.asarray(record[f"latents_{side}"], dtype=np.float32)
    except (TypeError, ValueError):
        return "latents are not [c][h][w]"
    if values.ndim != 3:
        return "latents are not [c][h][w]"
    if not np.isfinite(values).all():
        return "latents are not finite"
    size, crop = record.get(f"original_size_{side}"), record.get(f"crop_{side}")
    if any(value and (len(value) != 2 or None in value) for value in (size, crop)):
        return "original size or crop are not two numbers"
    return ReadyLatents(values, tuple(size) if size else None, tuple(crop) if crop else (0, 0))
