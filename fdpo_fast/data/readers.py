"""The pair formats by name, and which one a source is in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fdpo_fast.data.folders import Folders
from fdpo_fast.data.jsonl import METADATA, JSONRecords
from fdpo_fast.data.latents import EncodedPairs
from fdpo_fast.data.pairs import PairSource
from fdpo_fast.data.parquet import ParquetRows
from fdpo_fast.data.pickapic import PickAPic
from fdpo_fast.sections import Data

READERS: dict[str, Callable[[str, str], PairSource]] = {
    "pickapic": PickAPic,
    "folders": Folders,
    "jsonl": JSONRecords,
    "latents": EncodedPairs,
}


def open_source(data: Data) -> PairSource:
    """The reader of the configuration's data. Raises ValueError where the source is in no known format."""
    name = detect(data.source) if data.format == "auto" else data.format
    return READERS[name](data.source, data.ties)


def detect(source: str) -> str:
    """The format of a source, from its files."""
    path = Path(source).expanduser()
    if (path / "w").is_dir() and (path / "l").is_dir():
        return "folders"
    if path.suffix in (".json", ".jsonl") or (path / METADATA).is_file():
        return "jsonl"
    try:
        return "latents" if "latents_0" in ParquetRows(source).names else "pickapic"
    except ValueError:
        if not path.is_dir() or list(path.rglob("*.parquet")):
            raise
    raise ValueError(
        f"data.source '{source}' is in no known format: a folder has parquet files, the folders w and l, or {METADATA}"
    )
