"""Pick-a-Pic's parquet files (yuvalkirstain/pickapic_v2): the schema, a reader, a writer."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from datetime import datetime, timezone
from glob import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fdpo_fast.data.files import replacing
from fdpo_fast.data.pairs import Pair, Rejected

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
TIE = "a tie"


class PickAPic:
    """Reader of Pick-a-Pic parquet: a file, a folder of files or a glob.

    label_0 in {1, 0, 0.5} says that image 0 is preferred, dispreferred, or tied with image 1. Ties are dropped, or
    kept both ways at half weight ("half"). Raises ValueError when there is no file or a column is missing.
    """

    def __init__(self, source: str, ties: str = "drop") -> None:
        root = Path(source).expanduser()
        paths = sorted(root.rglob("*.parquet")) if root.is_dir() else [Path(p) for p in sorted(glob(str(root)))]
        if not paths:
            raise ValueError(f"no parquet file at data.source '{source}': give a file, a folder or a glob")
        self.ties = ties
        self.files = []
        for path in paths:
            try:
                file = pq.ParquetFile(path)
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"{path} is not a readable parquet file: {error}") from None
            missing = [column for column in COLUMNS if column not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path} lacks the Pick-a-Pic column{'s' * (len(missing) > 1)} {', '.join(missing)}")
            self.files.append((path, file))

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for _, file in self.files)

    def identity(self) -> dict:
        files = [{"name": path.name, "bytes": path.stat().st_size, "footer": _footer(path)} for path, _ in self.files]
        return {"format": "pickapic", "ties": self.ties, "files": files}

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        first = 0
        for path, file in self.files:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first < stop and first + rows > start:
                    yield from self._read_group(path, file, group, first, start, stop)
                first += rows

    def _read_group(
        self, path: Path, file: pq.ParquetFile, group: int, first: int, start: int, stop: int
    ) -> Iterator[Pair | Rejected]:
        row = first
        for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=COLUMNS):
            for record in batch.to_pylist():
                if start <= row < stop:
                    yield from self._pairs(row, f"{path.name} row {row}", **record)
                row += 1

    def _pairs(
        self, row: int, place: str, caption: str, jpg_0: bytes, jpg_1: bytes, label_0: float, label_1: float
    ) -> Iterator[Pair | Rejected]:
        if (label_0, label_1) not in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
            yield Rejected(place, "no valid label")
        elif label_0 == 0.5 and self.ties == "drop":
            yield Rejected(place, TIE)
        elif caption is None:
            yield Rejected(place, "no caption")
        else:
            try:
                images = decode(jpg_0), decode(jpg_1)
            except (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError):
                yield Rejected(place, "an image does not decode")
                return
            if label_0 != 0.0:
                yield Pair(2 * row, caption, *images, weight=label_0)
            if label_1 != 0.0:
                # the mirrored half of a tie draws its own noise
                yield Pair(2 * row + (label_0 == 0.5), caption, *images[::-1], weight=label_1)


def _footer(path: Path) -> str:
    """SHA-256 of a parquet file's footer: row groups, their sizes, offsets and statistics, without reading the data."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return hashlib.sha256(file.read(length)).hexdigest()


def decode(data: bytes) -> Image.Image:
    """Image bytes as RGB; raises what PIL raises on bytes that are not a whole image, TypeError on None."""
    image = Image.open(io.BytesIO(data))
    return image.convert("RGB")


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
