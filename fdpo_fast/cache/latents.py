"""The cache of latents: every image is decoded and encoded once, whatever pairs it is in.

It depends on neither divergence, beta, ratio_scale, learning rate nor optimizer: one serves a whole sweep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fdpo_fast import noise
from fdpo_fast.cache.build import Builder, Cache, lineage
from fdpo_fast.cache.pairs import Pairs, key_bytes
from fdpo_fast.cache.shards import VERSION, Shard, Shards, fitting
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.images import Geometry
from fdpo_fast.data.pairs import Pair, PairSource, ReadyLatents, Rejected
from fdpo_fast.data.prefetch import ahead
from fdpo_fast.data.reading import UnusableError
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.progress import Bar

if TYPE_CHECKING:
    from fdpo_fast.models.facts import Facts
    from fdpo_fast.models.vae import ImageEncoder

_GAP = 64  # rows that are read over rather than sought past
_TOLD = 1.0  # seconds between two words on what bounds the work


class _Image(NamedTuple):
    """An image that is going to be encoded: its number in the shard, its key, and what it is."""

    number: int
    key: bytes
    place: str
    content: Tensor | str
    """Pixels [3, h, w] uint8, latents [c, h, w] float32 that came ready, or why there are none."""
    ready: bool


def cache_latents(
    config: Config,
    source: PairSource,
    pairs: Pairs,
    geometry: Geometry,
    facts: Facts,
    load_encoder: Callable[[], ImageEncoder],
    builder: Builder,
) -> tuple[Shards, Tensor, Pairs]:
    """Decode and encode every image of the pairs once. Collective.

    Returns the shards, whose items are the images' latents, [c, h, w] or, as moments, [2, c, h, w]; the numbers of each
    pair's images, [n, 2]; and the pairs without those whose images do not decode. A shard's list `failed` has the
    reason and the number of such an image. `load_encoder` loads the VAE; it is asked only where something is
    missing.
    """
    data = config.data
    images, first = pairs.distinct()
    at_once = 2 * data.shard_rows
    starts = [*range(0, len(first), at_once), len(first)]
    manifest = {
        "version": VERSION,
        "pairs": pairs.digest(),
        "vae": facts.vae,
        "vae_dtype": data.vae_dtype,
        "latents": data.latents,
        "dtype": data.cache_dtype,
        "shard_rows": data.shard_rows,
    } | ({"noise": noise.NOISE_SPEC} if data.latents == "sample" else {})
    encoder = cache(load_encoder)

    def encode(group: list[_Image]) -> Tensor:
        return kept(*encoder()(torch.stack([image.content for image in group])), [i.key for i in group], data.latents)  # type: ignore[misc]

    def make(shard: int, bar: Bar) -> Shard:
        start, stop = starts[shard : shard + 2]
        wanted = _wanted(pairs, first[start:stop])
        rows = pairs.row[first[start:stop] // 2].unique().tolist()
        batches = _Batches(encode, data.encoded_at_once, DTYPES[data.cache_dtype])
        failed = []
        began = told = time.monotonic()

        def decoded(pair: Pair) -> list[_Image]:
            return _decoded(pair, wanted, geometry, pairs.folder)

        for found in ahead(decoded, _owners(source, rows, wanted), data.workers):
            for image in found:
                if isinstance(image.content, str):
                    failed.append([image.content, start + image.number])
                    batches.latents[image.number] = torch.empty(0, dtype=torch.float32, device="cpu")
                else:
                    batches.add(image)
            bar.update(len(found))
            if (now := time.monotonic()) - told > _TOLD:
                told = now
                bar.set_postfix_str(_pace(len(batches.latents), batches.busy, now - began))
        batches.finish()
        if missing := [number for number in range(stop - start) if number not in batches.latents]:
            row = int(pairs.row[int(first[start + missing[0]]) // 2])
            raise UserError(_changed(f"row {row} of data.source", pairs.folder))
        return Shard(
            items={"image": [batches.latents[number] for number in range(stop - start)]}, lists={"failed": failed}
        )

    sides = pairs.sizes.view(-1, 6)[first, 4:6].double() // facts.vae_factor
    elements = facts.channels * sides.prod(1) * (2 if data.latents == "moments" else 1)
    sizes = [float(elements[low:high].sum()) * DTYPES[data.cache_dtype].itemsize for low, high in pairwise(starts)]
    items = [high - low for low, high in pairwise(starts)]
    shards = Shards(
        builder.build(Cache("latents", manifest, lineage(config), items, "images", make, sizes)), by="image"
    )
    return shards, *_usable(pairs, images, shards.list("failed"))


def _usable(pairs: Pairs, images: Tensor, failed: list[list]) -> tuple[Tensor, Pairs]:
    """Leave out the pairs of images that did not decode; returns the numbers of the images that are left, and them."""
    if not failed:
        return images, pairs
    reasons = {number: reason for reason, number in failed}
    found = (
        (at, next((reasons[image] for image in both if image in reasons), ""))
        for at, both in enumerate(images.tolist())
    )
    bad = {at: reason for at, reason in found if reason}
    return images[pairs.but(bad)], pairs.without(bad)


Wanted = dict[int, list[tuple[int, int, bytes]]]
"""By pair id, the images that are encoded when it is read: number in the shard, side, and key."""


def _wanted(pairs: Pairs, first: Tensor) -> Wanted:
    wanted: Wanted = {}
    for number, place in enumerate(first.tolist()):
        pair, side = divmod(place, 2)
        wanted.setdefault(int(pairs.id[pair]), []).append((number, side, key_bytes(pairs.keys[pair, side])))
    return wanted


def _owners(source: PairSource, rows: list[int], wanted: Wanted) -> Iterator[Pair]:
    """Read the pairs of the images that are wanted, which are in these rows, in order."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row - runs[-1][1] < _GAP:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    for low, high in runs:
        for pair in source.read(low, high + 1):
            if not isinstance(pair, Rejected) and pair.id in wanted:
                yield pair


def _changed(place: str, folder: str) -> str:
    """Say that what is read is not what the cache of pairs, in a folder, was made from."""
    return (
        f"{place} has changed since it was looked at, in the same size and time of change: delete the folder {folder} "
        "in data.cache_dir, and run the same command again"
    )


def _decoded(pair: Pair, wanted: Wanted, geometry: Geometry, folder: str) -> list[_Image]:
    """Decode the images of a pair that are wanted; `folder` is that of the cache of pairs."""
    sides = geometry.place(pair)
    found = []
    for number, side, key in wanted[pair.id]:
        if isinstance(sides, Rejected):
            found.append(_Image(number, key, pair.place, sides.reason, False))
            continue
        placed = sides[side]
        if placed.key != key:
            raise UserError(_changed(pair.place, folder))
        if isinstance(placed.side, ReadyLatents):
            found.append(_Image(number, key, pair.place, torch.from_numpy(placed.side.values), True))
            continue
        try:
            pixels: Tensor | str = placed.pixels(geometry.data.max_megapixels)
        except UnusableError as error:
            pixels = str(error)
        found.append(_Image(number, key, pair.place, pixels, False))
    return found


class _Batches:
    """Images on their way through the VAE, in batches of one shape; a batch is read while the next one is encoded."""

    def __init__(self, encode: Callable[[list[_Image]], Tensor], size: int, dtype: torch.dtype) -> None:
        self.encode, self.size, self.dtype = encode, size, dtype
        self.latents: dict[int, Tensor] = {}
        """What is done, by number."""
        self.busy = 0.0
        """Seconds that the encoder took of this thread's time."""
        self.groups: dict[torch.Size, list[_Image]] = {}
        self.running: tuple[list[_Image], Tensor] | None = None

    def add(self, image: _Image) -> None:
        """Take an image; encode those of its shape when they are enough."""
        assert isinstance(image.content, Tensor)
        if image.ready:
            self.latents[image.number] = fitting(image.content, torch.float32, f"the latents of {image.place}")
            return
        group = self.groups.setdefault(image.content.shape, [])
        group.append(image)
        if len(group) >= self.size:
            self._run(group)

    def finish(self) -> None:
        """Encode what is left."""
        for group in self.groups.values():
            if group:
                self._run(group)
        self._read()

    def _run(self, group: list[_Image]) -> None:
        began = time.monotonic()
        running = list(group), self.encode(group)
        group.clear()
        self._read()
        self.running = running
        self.busy += time.monotonic() - began

    def _read(self) -> None:
        """Wait for the batch before, and take what it gave."""
        if self.running is None:
            return
        images, encoded = self.running
        self.running = None
        for image, latent in zip(images, encoded.cpu(), strict=True):
            what = f"the latent of an image of {image.place}"
            self.latents[image.number] = fitting(latent, self.dtype, what, by="the VAE", key="data.vae_dtype")


def _pace(done: int, busy: float, passed: float) -> str:
    """Say how fast the work goes, and what it waits for most: the encoder, which was `busy`, or its images."""
    share = busy / passed
    bound = f"the VAE, {share:.0%}" if share >= 0.5 else f"decoding (data.workers), {1 - share:.0%}"
    return f"{done / passed:.3g} images/s, bound by {bound}"


_POSTERIOR = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
"""Keys of the posterior's own noise (preferred, dispreferred side); the draws of training have small seeds."""


def kept(mean: Tensor, std: Tensor, keys: list[bytes], latents: str) -> Tensor:
    """Return what `data.latents` keeps of images' posteriors [n, c, h, w]: mode, [n, 2, c, h, w] moments, or a sample.

    The sample is a function of the image (its key) alone, whatever pair it is in.
    """
    if latents == "moments":
        return torch.stack([mean, std], dim=1)
    if latents == "mode":
        return mean
    ids = torch.tensor([int.from_bytes(key[:7], "little") for key in keys], dtype=torch.int64, device="cpu")
    eps = noise.normals(noise.draws(_POSTERIOR[0], ids, 0), mean[0].numel())
    return mean + std * eps.reshape(mean.shape).to(mean.device)


def sampled(latents: Tensor, ids: Tensor, visits: Tensor, seed: int) -> Tensor:
    """Sample moments [b, 2 (side), 2 (mean, deviation), c, h, w] for each visit: [b, 2, c, h, w]."""
    eps = [noise.normals(noise.draws(key ^ seed, ids, visits), latents[0, 0, 0].numel()) for key in _POSTERIOR]
    mean, std = latents.unbind(2)
    return mean + std * torch.stack(eps, dim=1).reshape(mean.shape)
