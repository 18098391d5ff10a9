"""Pick-a-Pic's parquet files (yuvalkirstain/pickapic_v2): the schema, a reader, a writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fdpo_fast.data.pairs import MISSING, Pair, Picture, Rejected, Rules, compared, in_text, short
from fdpo_fast.data.readers.parquet import ParquetPairs
from fdpo_fast.data.reading import UnusableError, text
from fdpo_fast.files import replacing

SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()),
        ("best_image_uid", pa.string()),
        ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")),
        ("has_label", pa.bool_()),
        ("image_0_uid", pa.string()),
        ("image_0_url", pa.string()),
        ("image_1_uid", pa.string()),
        ("image_1_url", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("ranking_id", pa.int64()),
        ("user_id", pa.int64()),
        ("num_example_per_prompt", pa.int64()),
        ("__index_level_0__", pa.int64()),
    ]
)
COLUMNS = ["caption", "jpg_0", "jpg_1", "label_0", "label_1"]
_MODELS = ("model_0", "model_1")  # which some files lack


class PickAPic(ParquetPairs):
    """Reader of Pick-a-Pic parquet; `source` as for `ParquetRows`.

    label_0 in {1, 0, 0.5} says that image 0 is preferred, dispreferred, or tied with image 1; between them lie shares
    of votes. Raises UserError when there is no file or a column is missing.
    """

    def __init__(self, source: str, rules: Rules | None = None) -> None:
        super().__init__("pickapic", source, rules)
        self.rows.require(COLUMNS, "Pick-a-Pic")

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop); a row without image, caption or valid labels is rejected."""
        named = [name for name in _MODELS if name in self.rows.shared]
        for row, place, record in self.rows.read(start, stop, [*COLUMNS, *named]):
            if isinstance(record, Rejected):
                yield record
                continue
            sides = _picture("jpg_0", record["jpg_0"]), _picture("jpg_1", record["jpg_1"])
            labels, caption = (record["label_0"], record["label_1"]), record["caption"]
            if isinstance(caption, bytes):
                caption = _text(caption)
            models = record.get(_MODELS[0]), record.get(_MODELS[1])
            yield from compared(row, 2 * row, place, caption, sides, labels, self.rules, models=models)


def _text(caption: bytes) -> str | UnusableError:
    try:
        return text(caption)
    except UnusableError as error:
        return UnusableError(f"the caption is not UTF-8: {error}")


def _picture(column: str, value: object) -> Picture | str:
    """Find an image in what a column holds: bytes, what `datasets` wraps them in, or base64; or say what is there."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, str):
        content = in_text(content)
    elif isinstance(content, list):
        with suppress(ValueError, TypeError):  # not of bytes
            content = bytes(content)
    return (
        Picture(column, content)
        if isinstance(content, bytes)
        else f"{MISSING}: {column} holds {short(value)}, no bytes"
    )


def write_pairs(
    path: Path, *, captions: list[str], jpg_0: list[bytes], jpg_1: list[bytes], label_0: list[float]
) -> None:
    """Write pairs in Pick-a-Pic's schema; `label_0` is 1, 0 or 0.5 (a tie)."""
    n = len(captions)
    uids = [[f"{row}-{side}" for row in range(n)] for side in (0, 1)]
    columns = {
        "are_different": [True] * n,
        "best_image_uid": [_best(label, a, b) for label, a, b in zip(label_0, *uids, strict=True)],
        "caption": captions,
        "created_at": [datetime.now(timezone.utc).replace(tzinfo=None)] * n,
        "has_label": [True] * n,
        "image_0_uid": uids[0],
        "image_0_url": [""] * n,
        "image_1_uid": uids[1],
        "image_1_url": [""] * n,
        "jpg_0": jpg_0,
        "jpg_1": jpg_1,
        "label_0": label_0,
        "label_1": [1 - label for label in label_0],
        "model_0": ["base"] * n,
        "model_1": ["base"] * n,
        "ranking_id": range(n),
        "user_id": [0] * n,
        "num_example_per_prompt": [1] * n,
        "__index_level_0__": range(n),
    }
    with replacing(path) as partial:
        pq.write_table(pa.table(columns, schema=SCHEMA), partial, row_group_size=256)


def _best(label_0: float, uid_0: str, uid_1: str) -> str:
    return "tie" if label_0 == 0.5 else uid_0 if label_0 else uid_1
