"""Sharded safetensors with a checksum for whatever is read by itself; nothing is loaded unasked.

A shard has columns (small tensors with a row per entry, read whole), items (one tensor per entry, of any shape, read
one by one), and lists in JSON. Items of one shape lie in one tensor, `name.0`, `name.1`, ...; `name#at` says which
tensor and which row an item is, `name#crc` is its checksum.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fdpo_fast.config.errors import UserError
from fdpo_fast.files import replacing

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
VERSION = 4
"""Of what the shards of pairs, latents and text hold."""
_REMEDY = "delete this file and run again, which makes it anew"


def fitting(tensor: Tensor, dtype: torch.dtype, what: str, by: str = "data.source", key: str = "") -> Tensor:
    """Return the tensor in the dtype of the cache; UserError where it is not finite, or that dtype cannot hold it.

    what: the tensor in words; by: who made it; key: of the configuration, which decides how that computes.
    """
    out = tensor.to("cpu", dtype)
    if out.isfinite().all():
        return out
    if not (finite := tensor.isfinite()).all():
        kind = "NaN" if tensor.isnan().any() else "infinite"
        remedy = f": set {key} to fp32, or take a model.vae made for 16 bits" if key else ": drop the row"
        raise UserError(f"{what} is {kind} in {int((~finite).sum())} of {tensor.numel()} numbers, made by {by}{remedy}")
    largest = tensor.abs().max().item()
    raise UserError(f"{what} reaches {largest:.3g}, which {dtype} cannot hold: set data.cache_dtype to fp32 or bf16")


@dataclass(frozen=True)
class Shard:
    """The content of one file."""

    columns: dict[str, Tensor] = field(default_factory=dict)
    items: dict[str, list[Tensor]] = field(default_factory=dict)
    lists: dict[str, list] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """About how large the file is going to be."""
        tensors = [*self.columns.values(), *(value for values in self.items.values() for value in values)]
        return sum(tensor.nbytes for tensor in tensors) + len(json.dumps(self.lists))

    def save(self, path: Path) -> None:
        """Write the file whole, or not at all; equal shards give equal bytes."""
        columns = {name: tensor.contiguous().cpu() for name, tensor in self.columns.items()}
        tensors: dict[str, Tensor] = {}
        for name, values in self.items.items():
            groups: dict[torch.Size, list[Tensor]] = {}
            at = []
            for value in values:
                group = groups.setdefault(value.shape, [])
                at.append((list(groups).index(value.shape), len(group)))
                group.append(value.contiguous().cpu())
            tensors |= {f"{name}.{number}": torch.stack(group) for number, group in enumerate(groups.values())}
            columns[f"{name}#at"] = torch.tensor(at, dtype=torch.int64, device="cpu").view(-1, 2)
            columns[f"{name}#crc"] = torch.tensor([crc(value) for value in values], dtype=torch.int64, device="cpu")
        sums = {name: crc(tensor) for name, tensor in columns.items()}
        # one key: safetensors writes several in any order
        own = {"crc": sums, "lists": self.lists, "lists_crc": _crc_of_lists(self.lists)}
        header = {"fdpo_fast": json.dumps(own, sort_keys=True)}
        with replacing(path) as partial:
            save_file(tensors | columns, partial, header)


def crc(tensor: Tensor) -> int:
    """Return the CRC-32 of the bytes."""
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0


def _crc_of_lists(lists: dict[str, list]) -> int:
    return zlib.crc32(json.dumps(lists, sort_keys=True).encode())


class _File:
    """A safetensors file, of which parts are read. Raises UserError where it is not whole, or not any more.

    It is not memory-mapped: where a mapped file is cut off, or its disk fails, the process dies of SIGBUS.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = path.open("rb", buffering=0)
            size = os.fstat(self.file.fileno()).st_size
            self.start = 8 + int.from_bytes(self._bytes(0, min(8, size)), "little")
            self.tensors = json.loads(self._bytes(8, min(self.start, size) - 8))
            own = json.loads(self.tensors.pop("__metadata__")["fdpo_fast"])
            ends = [entry["data_offsets"][1] for entry in self.tensors.values()]
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except UserError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}): {_REMEDY}") from None
        if self.start + max(ends) != size:
            raise UserError(f"{path} is damaged (it is not whole): {_REMEDY}")
        self.crc: dict[str, int] = own["crc"]
        self.lists: dict[str, list] = own["lists"]
        if own.get("lists_crc") != _crc_of_lists(self.lists):
            raise UserError(f"{path} is damaged (its lists do not match their checksum): {_REMEDY}")

    def _bytes(self, first: int, size: int) -> bytearray:
        content = bytearray(max(0, size))
        rest = memoryview(content)
        while rest:
            count = os.preadv(self.file.fileno(), [rest], first)
            if not count:
                raise UserError(f"{self.path} is damaged (its end has been cut off meanwhile): {_REMEDY}")
            rest, first = rest[count:], first + count
        return content

    def read(self, name: str, row: int | None = None) -> Tensor:
        """Return a tensor or one row of it."""
        entry = self.tensors[name]
        dtype, shape, first = _DTYPES[entry["dtype"]], entry["shape"], self.start + entry["data_offsets"][0]
        if row is not None:
            shape = shape[1:]
            first += row * math.prod(shape) * dtype.itemsize
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=dtype, device="cpu")
        try:
            return torch.frombuffer(self._bytes(first, size), dtype=dtype).reshape(shape)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from None


class Shards:
    """All shards of a folder, in order. `by` names the column or items that count their entries.

    Raises UserError wherever bytes are missing or do not match their checksum.
    """

    def __init__(self, folder: Path, by: str) -> None:
        self.folder = folder
        self.paths = sorted(folder.glob("*.safetensors"))
        self.files = [_File(path) for path in self.paths]
        self.range = range(len(self.files))
        counted = by if by in self.files[0].crc else f"{by}#crc"
        self.starts = list(itertools.accumulate((len(self._column(s, counted)) for s in self.range), initial=0))
        self.places: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    def shard_of(self, entry: int) -> int:
        """Return the shard that holds an entry."""
        return bisect.bisect_right(self.starts, entry) - 1

    def list(self, key: str) -> list[Any]:
        """Return the JSON lists under `key` of all shards, joined."""
        return [entry for file in self.files for entry in file.lists[key]]

    def column(self, name: str) -> Tensor:
        """Return a column of all shards, in memory."""
        return torch.cat([self._column(shard, name) for shard in self.range])

    def _column(self, shard: int, name: str) -> Tensor:
        return self._checked(shard, name, self.files[shard].read(name), self.files[shard].crc[name])

    def item(self, shard: int, name: str, index: int) -> Tensor:
        """Return one item of a shard."""
        if (shard, name) not in self.places:
            self.places[shard, name] = self._column(shard, f"{name}#at"), self._column(shard, f"{name}#crc")
        at, sums = self.places[shard, name]
        group, row = at[index].tolist()
        tensor = self.files[shard].read(f"{name}.{group}", row)
        return self._checked(shard, f"{name} {index}", tensor, int(sums[index]))

    def entry(self, name: str, entry: int) -> Tensor:
        """Return one item, counted over all shards."""
        shard = self.shard_of(entry)
        return self.item(shard, name, entry - self.starts[shard])

    def _checked(self, shard: int, name: str, tensor: Tensor, expected: int) -> Tensor:
        if crc(tensor) != expected:
            raise UserError(f"{self.paths[shard]} is damaged ('{name}' does not match its checksum): {_REMEDY}")
        return tensor

    def check_all(self) -> int:
        """Read everything and compare it with its checksums; returns the number of checksums."""
        count = 0
        for shard in self.range:
            for name in self.files[shard].crc:
                rows = self._column(shard, name)
                count += 1
                if name.endswith("#crc"):
                    count += len(rows)
                    for index in range(len(rows)):
                        self.item(shard, name.removesuffix("#crc"), index)
        return count
