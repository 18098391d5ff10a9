"""Sharded safetensors folders: written whole shard by whole shard by any number of ranks, memory-mapped to read."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from fdpo_fast.data.files import digest, replacing

Shard = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors with one row per item, and string metadata."""


def build(
    root: Path, kind: str, manifest: dict, count: int, make: Callable[[int], Shard], rank: int, world_size: int
) -> Path:
    """Fill `root/kind-<digest of the manifest>` with `count` shards, of which this rank makes every `world_size`-th.

    A shard that exists is kept, so a killed build goes on where it stood. Returns the folder; other ranks may still be
    at work on theirs.
    """
    folder = root / f"{kind}-{digest(manifest)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in range(rank, count, world_size) if not _file(folder, shard).exists()]
    if missing:
        with replacing(folder / "manifest.json") as partial:
            partial.write_text(json.dumps(manifest, indent=2))
    for shard in tqdm(missing, desc=f"caching {kind}", unit="shard", disable=rank > 0 or not missing):
        tensors, metadata = make(shard)
        with replacing(_file(folder, shard)) as partial:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, partial, metadata)
    return folder


def _file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.safetensors"


class Shards:
    """Rows of all shards of a folder, in order. Tensors stay on disk, memory-mapped, until a row is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        sizes = [file.get_slice(next(iter(file.keys()))).get_shape()[0] for file in self.files]
        self.starts = list(itertools.accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def metadata(self, key: str) -> list:
        """The JSON lists under `key` of all shards, joined."""
        return [item for file in self.files for item in json.loads(file.metadata()[key])]

    def column(self, key: str) -> Tensor:
        """All rows of a (small) tensor, in memory."""
        return torch.cat([file.get_tensor(key) for file in self.files])

    @property
    def names(self) -> list[str]:
        """Names of the tensors in every shard."""
        return sorted(self.files[0].keys())

    def rows(self, key: str, indices: Tensor) -> Tensor:
        """The rows `indices` [n] of a tensor, [n, ...]."""
        parts = []
        for index in indices.tolist():
            shard = bisect.bisect_right(self.starts, index) - 1
            at = index - self.starts[shard]
            parts.append(self.files[shard].get_slice(key)[at : at + 1])
        return torch.cat(parts)
