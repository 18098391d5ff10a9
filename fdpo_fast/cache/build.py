"""Filling cache folders: shard by shard, on any number of ranks, from where a killed build left off.

A folder is named by the digest of its manifest, everything the cache depends on, so a stale cache is never read. A
cache that was asked for by name (`fdpo cache`) is a promise besides: where it is for the same data and model but does
not match, the trainer does not spend hours on another one but says which field differs.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fdpo_fast.cache.shards import Shard
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.distributed import Rank, check_equal
from fdpo_fast.files import clear_partial, digest, make_folder, read_json, replacing
from fdpo_fast.locks import FolderLock
from fdpo_fast.progress import Bar, progress

_MANIFEST, _REQUESTED = "manifest.json", "requested.json"


def lineage(config: Config) -> dict[str, str]:
    """Return what a user calls the same data and model."""
    labels = {"data.labels": config.data.labels} if config.data.labels is not None else {}
    return {"data.source": config.data.source, **labels, "model.base": config.model.base}


@dataclass(frozen=True)
class Cache:
    """What to build."""

    kind: str
    manifest: dict[str, Any]
    """Everything the content depends on."""
    lineage: dict[str, str]
    """What a user calls the same cache: the data and the model by name."""
    items: list[int]
    """Entries per shard, for the progress bar."""
    unit: str
    """What an entry is, in the plural."""
    make: Callable[[int, Bar], Shard]
    """(shard, bar) -> its content; the bar is told how many entries are done."""
    sizes: list[float] | None = None
    """About how many bytes each shard is on disk; None for next to nothing."""


@dataclass(frozen=True)
class Builder:
    """Where the caches are, and who fills them."""

    root: Path
    rank: Rank
    requested: bool = False
    """By `fdpo cache`: builds whatever differs from what is there, and marks it as asked for."""
    complete: bool = False
    """Refuse to build: what is missing is an error."""
    part: str = ""
    """What of the data the caches are for, where they are not for all that is trained on."""
    resumed: dict[str, str] = field(default_factory=dict)
    """By kind, the folder's name that a run to be resumed was trained from."""

    def build(self, cache: Cache) -> Path:
        """Return the folder of the cache, filled now if need be. Collective.

        Raises UserError, before anything is built, when there is no room for it, when its manifest was changed, when
        one was asked for that differs, the run was trained from another, or the nodes do not agree; and wherever its
        folder cannot be read or written.
        """
        if self.part:
            cache = replace(cache, lineage=cache.lineage | {"part": self.part})
        folder = self.root / f"{cache.kind}-{digest(cache.manifest)[:16]}"
        check_equal(
            self.rank,
            folder.name,
            f"the nodes would make another {cache.kind} cache each: data.source or model.base is not the same on all "
            "(a copy of pairs with other times of change counts as other pairs); put both on a file system they share",
        )
        with reading(folder):
            self._agree(folder, cache)
            missing = [shard for shard in range(len(cache.items)) if not _file(folder, shard).exists()]
        if missing and self.complete:
            raise UserError(f"the {cache.kind} cache of this configuration is not complete: run `fdpo cache` first")
        self.rank.barrier()  # nobody writes before all have looked
        if missing:
            with self._alone(folder):
                self._announce(folder, cache, missing)
                self.rank.barrier()
                self._fill(folder, cache)
                self.rank.barrier()
        if self.requested and self.rank.index == 0:
            self._mark(folder, cache)
        self.rank.barrier()
        return folder

    def _agree(self, folder: Path, cache: Cache) -> None:
        if (before := self.resumed.get(cache.kind, folder.name)) != folder.name:
            old = self.root / before
            what = _difference(old, cache.manifest) if old.is_dir() else f"{before} is now {folder.name}"
            raise UserError(
                f"this run was trained with another {cache.kind} cache: {what}; change it back, or start a new "
                "train.output_dir"
            )
        if (folder / _MANIFEST).exists():
            if differing := _difference(folder, cache.manifest):
                raise UserError(f"the manifest of the cache {folder} does not match: {differing}; delete the folder")
            return
        if self.requested:
            return
        for other in sorted(self.root.glob(f"{cache.kind}-*")):
            asked = other / _REQUESTED
            if asked.exists() and read_json(asked) == cache.lineage:
                raise UserError(
                    f"the {cache.kind} cache made by `fdpo cache` for this data and model ({other}) does not match the "
                    f"configuration: {_difference(other, cache.manifest)}; change it back, or run `fdpo cache` with "
                    "this configuration to have both"
                )

    def _mark(self, folder: Path, cache: Cache) -> None:
        """Note that a cache was asked for; a whole one on a disk that is only read is as good without."""
        path = folder / _REQUESTED
        try:
            if not path.is_file() or path.read_bytes() != _text(cache.lineage).encode():
                _write(path, cache.lineage)
        except OSError as error:
            self.rank.warn(
                f"{folder} cannot be marked as made by `fdpo cache` ({error.strerror}): it is used all the same, but a "
                "configuration that does not match it will make another and not be refused"
            )

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Let one run at a time fill a folder; what a killed one left half written is cleared away."""
        if self.rank.index:
            yield
            return
        with writing(folder):
            make_folder(folder)
            lock = FolderLock(folder, ".lock")
            try:
                lock.acquire(patience=0)
            except BlockingIOError:
                self.rank.say(f"another run is filling {folder}: waiting for it")
                lock.acquire()
        try:
            with writing(folder):
                clear_partial(folder, alone=True)
            yield
        finally:
            lock.release()

    def _announce(self, folder: Path, cache: Cache, missing: list[int]) -> None:
        """Say what is going to be written, and refuse where the disk is too small for it."""
        if self.rank.index:
            return
        items = sum(cache.items[shard] for shard in missing)
        need = sum(cache.sizes[shard] for shard in missing) if cache.sizes else 0.0
        with reading(folder):
            free = shutil.disk_usage(folder).free
        if need > free:
            raise UserError(
                f"the {cache.kind} cache needs about {_size(need)} and {self.root} has {_size(free)}: set "
                "data.cache_dir to a larger disk, or data.cache_dtype to fp16"
            )
        room = f", about {_size(need)}, {_size(free)} free" if cache.sizes else ""
        self.rank.say(f"caching {cache.kind}: {items:,} {cache.unit}{room}, to {folder}")
        with writing(folder):
            _write(folder / _MANIFEST, cache.manifest)

    def _fill(self, folder: Path, cache: Cache) -> None:
        mine = range(self.rank.index, len(cache.items), self.rank.count)
        missing = [shard for shard in mine if not _file(folder, shard).exists()]
        total = sum(cache.items[shard] for shard in missing)
        unit = f" {cache.unit}"
        with progress(total=total, desc=f"caching {cache.kind}", unit=unit, show=self.rank.index == 0) as bar:
            for shard in missing:
                content = cache.make(shard, bar)
                with writing(folder, content.bytes):
                    content.save(_file(folder, shard))


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Look into a folder of `data.cache_dir`; UserError where that is not possible within the block."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read: {error.strerror}; mend that, or set another data.cache_dir"
        ) from None


@contextmanager
def writing(folder: Path, size: int = 0) -> Iterator[None]:
    """Write into a folder of `data.cache_dir`, a file of so many bytes if that is known.

    Raises UserError where the disk is full, before or within the block, or the folder cannot be written within it.
    """
    more = f", {_size(size)} more are needed for the next file" if size else ""
    full = (
        f"the disk of {folder} is full, in bytes or in number of files{more}: what is there stays; make room, or set "
        "data.cache_dir to a larger disk, and run the same command again"
    )
    try:
        if size and shutil.disk_usage(folder).free < size:
            raise UserError(full)
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or any(word in str(error) for word in _FULL):
            raise UserError(full) from None
        words = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder} cannot be written: {words}; what is there stays; mend that, or set another data.cache_dir"
        ) from None


_FULL = ("StorageFull", "No space left", "os error 28", "QuotaExceeded", "os error 122")
"""What safetensors says of a full disk."""


def _file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.safetensors"


def _text(value: dict) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _write(path: Path, value: dict) -> None:
    with replacing(path) as partial:
        partial.write_text(_text(value))


def _difference(folder: Path, manifest: dict) -> str:
    """Return the fields in which the manifest of a folder differs from `manifest`; empty for none."""
    found, manifest = _flat(read_json(folder / _MANIFEST)), _flat(manifest)
    keys = [key for key in sorted({*found, *manifest}) if found.get(key) != manifest.get(key)]
    return ", ".join(f"'{key}' is {_short(found.get(key))} there and {_short(manifest.get(key))} here" for key in keys)


def _flat(value: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else f"{digest(value)[:12]}... (digest)"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
