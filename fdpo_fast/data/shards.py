"""Sharded safetensors with a checksum for whatever is read by itself; memory-mapped, so nothing is loaded unasked.

A shard has columns (small tensors with a row per entry, read whole), items (one tensor per entry, of any shape, read
one by one), and lists in JSON.
"""

from __future__ import annotations

import bisect
import itertools
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fdpo_fast.data.files import replacing


@dataclass(frozen=True)
class Shard:
    """The content of one file."""

    columns: dict[str, Tensor] = field(default_factory=dict)
    items: dict[str, list[Tensor]] = field(default_factory=dict)
    lists: dict[str, list] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file whole, or not at all; equal shards give equal bytes."""
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.columns.items()}
        for name, values in self.items.items():
            values = [value.contiguous().cpu() for value in values]
            tensors |= {_item(name, index): value for index, value in enumerate(values)}
            tensors[f"{name}#crc"] = torch.tensor([crc(value) for value in values], dtype=torch.int64)
        sums = {name: crc(tensors[name]) for name in [*self.columns, *(f"{name}#crc" for name in self.items)]}
        # one key: safetensors writes several in any order
        header = {"fdpo_fast": json.dumps({"crc": sums, "lists": self.lists}, sort_keys=True)}
        with replacing(path) as partial:
            save_file(tensors, partial, header)


def crc(tensor: Tensor) -> int:
    """CRC-32 of the bytes."""
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else 0


def _item(name: str, index: int) -> str:
    return f"{name}.{index:06d}"


class Shards:
    """All shards of a folder, in order. `by` names the column or items that count their entries.

    Raises ValueError wherever bytes are missing or do not match their checksum.
    """

    def __init__(self, folder: Path, by: str) -> None:
        self.folder = folder
        self.paths = sorted(folder.glob("*.safetensors"))
        self.files, self.headers = [], []
        for path in self.paths:
            try:
                file = safe_open(path, framework="pt")
                self.headers.append(json.loads(file.metadata()["fdpo_fast"]))
            except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
                raise ValueError(f"{path} is damaged ({error}): {_REMEDY}") from None
            self.files.append(file)
        counted = by if by in self.headers[0]["crc"] else f"{by}#crc"
        self.starts = list(itertools.accumulate((len(self._column(s, counted)) for s in self.range), initial=0))
        self.sums: dict[tuple[int, str], Tensor] = {}

    @property
    def range(self) -> range:
        """Numbers of the shards."""
        return range(len(self.files))

    def __len__(self) -> int:
        return self.starts[-1]

    def shard_of(self, entry: int) -> int:
        """The shard that holds an entry."""
        return bisect.bisect_right(self.starts, entry) - 1

    def list(self, key: str) -> list[Any]:
        """The JSON lists under `key` of all shards, joined."""
        return [entry for header in self.headers for entry in header["lists"][key]]

    def column(self, name: str) -> Tensor:
        """A column of all shards, in memory."""
        return torch.cat([self._column(shard, name) for shard in self.range])

    def _column(self, shard: int, name: str) -> Tensor:
        tensor = self.files[shard].get_tensor(name)
        self._check(shard, name, tensor, self.headers[shard]["crc"][name])
        return tensor

    def item(self, shard: int, name: str, index: int) -> Tensor:
        """One item of a shard."""
        if (shard, name) not in self.sums:
            self.sums[shard, name] = self._column(shard, f"{name}#crc")
        tensor = self.files[shard].get_tensor(_item(name, index))
        self._check(shard, _item(name, index), tensor, int(self.sums[shard, name][index]))
        return tensor

    def entry(self, name: str, entry: int) -> Tensor:
        """One item, counted over all shards."""
        shard = self.shard_of(entry)
        return self.item(shard, name, entry - self.starts[shard])

    def _check(self, shard: int, name: str, tensor: Tensor, expected: int) -> None:
        if crc(tensor) != expected:
            raise ValueError(f"{self.paths[shard]} is damaged ('{name}' does not match its checksum): {_REMEDY}")

    def check_all(self) -> int:
        """Read everything and compare it with its checksums; returns the number of tensors."""
        for shard, file in enumerate(self.files):
            for name in file.keys():  # noqa: SIM118, safe_open is no dict
                key, dot, index = name.partition(".")
                if dot:
                    self.item(shard, key, int(index))
                else:
                    self._column(shard, name)
        return sum(len(file.keys()) for file in self.files)


_REMEDY = "delete this file and run again, which makes it anew"
