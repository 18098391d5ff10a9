"""The cache of pairs: who is compared with whom and how both are cut, found before anything is encoded.

Every row is read and every image looked at, by its header, so what cannot be used is known within minutes, and each
image that several pairs share is known to be one. Of a model it depends on the shapes it takes alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fdpo_fast.cache.build import Builder, Cache, lineage
from fdpo_fast.cache.shards import VERSION, Shard, Shards
from fdpo_fast.config.run import Config
from fdpo_fast.data.images import Geometry
from fdpo_fast.data.pairs import Pair, PairSource, Rejected
from fdpo_fast.data.prefetch import ahead
from fdpo_fast.progress import Bar


class Refused(NamedTuple):
    """A row that gives no pair, or one of its pairs: where it stands, why, and the row."""

    place: str
    reason: str
    row: int


_COLUMNS = ("id", "row", "text", "weight", "sizes", "keys")


@dataclass(frozen=True)
class Pairs:
    """The pairs of a source, in order."""

    folder: str
    """The name of their cache."""
    id: Tensor  # [n] int64
    row: Tensor  # [n] int64, of the source
    text: Tensor  # [n] int64: what tells the embeddings of one caption apart
    weight: Tensor  # [n] float32
    sizes: Tensor  # [n, 2, 6] int64: `images.Frame.size` of the preferred and the dispreferred image
    keys: Tensor  # [n, 2, 2] int64: digests, equal for equal images under equal geometry
    captions: list[str]
    places: list[str]
    refused: list[Refused]

    def __len__(self) -> int:
        return len(self.id)

    def digest(self) -> str:
        """Return the SHA-256 of what is encoded for them, in which order."""
        return hashlib.sha256(self.id.numpy().tobytes() + self.keys.numpy().tobytes()).hexdigest()

    def texts(self) -> list[tuple[str, int]]:
        """List what is embedded for each pair: its caption, and what tells the embeddings of one caption apart."""
        return list(zip(self.captions, self.text.tolist(), strict=True))

    def distinct(self) -> tuple[Tensor, Tensor]:
        """Number the images in the order in which they come first.

        Returns the numbers of each pair's images, [n, 2], and where each image comes first, 2 * pair + side, [images].
        """
        both = np.ascontiguousarray(self.keys.numpy()).reshape(-1, 2).view([("a", "<i8"), ("b", "<i8")]).ravel()
        _, first, inverse = np.unique(both, return_index=True, return_inverse=True)
        order = np.argsort(first)
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        return torch.from_numpy(number[inverse].reshape(-1, 2)), torch.from_numpy(first[order])

    def only(self, kept: Tensor) -> Pairs:
        """Return the pairs that are True in `kept`, [n] bool; the refused ones stay the source's."""
        listed = kept.tolist()
        return replace(
            self,
            **{name: getattr(self, name)[kept] for name in _COLUMNS},
            captions=list(compress(self.captions, listed)),
            places=list(compress(self.places, listed)),
        )

    def but(self, bad: Container[int]) -> Tensor:
        """Return which pairs are left without those at some positions, [n] bool."""
        return torch.tensor([at not in bad for at in range(len(self))], dtype=torch.bool, device="cpu")

    def without(self, bad: dict[int, str]) -> Pairs:
        """Return the pairs but those at some positions, which go to the refused ones with their reasons."""
        kept = self.but(bad)
        # a broken tie kept both ways is one row
        lost = dict.fromkeys(Refused(self.places[at], reason, int(self.row[at])) for at, reason in bad.items())
        return replace(self.only(kept), refused=sorted([*self.refused, *lost], key=lambda one: one.row))


def cache_pairs(config: Config, source: PairSource, geometry: Geometry, builder: Builder) -> Pairs:
    """Read every row of a source once and note its pairs. Collective.

    A shard's columns are those of `Pairs`; its lists are `captions`, `places` and `refused`.
    """
    data = config.data
    manifest = {
        "version": VERSION,
        "source": source.identity(),
        "geometry": geometry.identity(),
        "factor": geometry.vae_factor,
        "channels": geometry.channels,
        "denoiser_factor": geometry.denoiser_factor,
        "max_megapixels": data.max_megapixels,
        "shard_rows": data.shard_rows,
    }

    def make(shard: int, bar: Bar) -> Shard:
        rows = source.read(shard * data.shard_rows, (shard + 1) * data.shard_rows)
        return _shard(rows, geometry, data.workers, bar)

    items = [min(data.shard_rows, len(source) - at) for at in range(0, len(source), data.shard_rows)]
    shards = Shards(builder.build(Cache("pairs", manifest, lineage(config), items, "rows", make)), by="id")
    content: dict[str, Any] = {name: shards.column(name) for name in _COLUMNS}
    content |= {name: shards.list(name) for name in ("captions", "places")}
    return Pairs(shards.folder.name, **content, refused=[Refused(*entry) for entry in shards.list("refused")])


def _shard(rows: Iterable[Pair | Rejected], geometry: Geometry, workers: int, bar: Bar) -> Shard:
    pairs: list[tuple[Pair, list[tuple]]] = []
    refused: list[list] = []

    def place(row: Pair | Rejected) -> tuple[Pair | Rejected, list[tuple] | Rejected]:
        sides = row if isinstance(row, Rejected) else geometry.place(row)
        # the bytes of the images are let go here, in the thread
        return row, sides if isinstance(sides, Rejected) else [(side.frame.size, side.key) for side in sides]

    at = -1
    for row, sides in ahead(place, rows, workers):
        bar.update(row.row != at)
        at = row.row
        if isinstance(sides, Rejected):
            entry = [sides.place, sides.reason, row.row]
            if entry not in refused[-1:]:  # a broken tie kept both ways
                refused.append(entry)
            continue
        pairs.append((row, sides))
    columns = {
        "id": torch.tensor([pair.id for pair, _ in pairs], dtype=torch.int64, device="cpu"),
        "row": torch.tensor([pair.row for pair, _ in pairs], dtype=torch.int64, device="cpu"),
        "text": torch.tensor([pair.text for pair, _ in pairs], dtype=torch.int64, device="cpu"),
        "weight": torch.tensor([pair.weight for pair, _ in pairs], dtype=torch.float32, device="cpu"),
        "sizes": torch.tensor(
            [[size for size, _ in sides] for _, sides in pairs], dtype=torch.int64, device="cpu"
        ).view(-1, 2, 6),
        "keys": torch.tensor(
            [[_words(key) for _, key in sides] for _, sides in pairs], dtype=torch.int64, device="cpu"
        ).view(-1, 2, 2),
    }
    lists = {name: [getattr(pair, name) for pair, _ in pairs] for name in ("caption", "place")}
    return Shard(columns, lists={"captions": lists["caption"], "places": lists["place"], "refused": refused})


def _words(key: bytes) -> list[int]:
    return np.frombuffer(key, "<i8").tolist()


def key_bytes(words: Tensor) -> bytes:
    """Return a key that is stored as two words as the bytes that it was."""
    return words.numpy().astype("<i8").tobytes()
