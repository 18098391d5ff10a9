"""The cache of latents: every image is decoded and encoded once, whatever pairs it is in.

It depends on neither divergence, beta, ratio_scale, learning rate nor optimizer: one serves a whole sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fdpo_fast import noise
from fdpo_fast.cache.build import Builder, Cache, lineage
from fdpo_fast.cache.shards import VERSION, Shard, Shards, stored
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.images import Geometry, Placed, to_vae
from fdpo_fast.data.pairs import TIE, Pair, PairSource, Rejected
from fdpo_fast.data.prefetch import ahead
from fdpo_fast.models.precision import DTYPES

if TYPE_CHECKING:
    from fdpo_fast.models.family import Facts, ImageEncoder


def cache_latents(
    config: Config, source: PairSource, facts: Facts, load_encoder: Callable[[], ImageEncoder], builder: Builder
) -> Shards:
    """Decode every pair once and encode every image once (within a shard of rows).

    A shard's entries are pairs: `id`, `weight`, `images` [2] (preferred, dispreferred: which of the shard's items),
    `sizes` [2, 6] (`images.Placed.size`); its items are the images' latents, [c, h, w] or, as moments, [2, c, h, w].
    Lists: `captions`, and `rejected` rows with place and reason. `load_encoder` loads the VAE; it is asked only where
    something is missing.
    """
    data = config.data
    geometry = Geometry(data, config.reference.seed, facts.vae_factor, facts.denoiser_factor)
    manifest = {
        "version": VERSION,
        "source": source.identity(),
        "geometry": geometry.identity(),
        "vae": facts.vae,
        "latents": data.latents,
        "dtype": data.cache_dtype,
        "shard_rows": data.shard_rows,
    } | ({"noise": noise.NOISE_SPEC} if data.latents == "sample" else {})
    encoder = cache(load_encoder)

    def encode(pixels: list[Tensor], keys: list[bytes]) -> list[Tensor]:
        moments = encoder()(to_vae(torch.stack(pixels)))
        return list(stored(kept(*moments, keys, data.latents), DTYPES[data.cache_dtype]))

    def make(shard: int, advance: Callable[[int], Any]) -> Shard:
        rows = source.read(shard * data.shard_rows, (shard + 1) * data.shard_rows)
        return _latent_shard(rows, geometry, data.workers, data.encoded_at_once, encode, advance)

    numbers = [geometry.sizes()[0][axis] // facts.vae_factor for axis in (0, 1)]
    elements = 4 * numbers[0] * numbers[1] * (2 if data.latents == "moments" else 1)
    items = [min(data.shard_rows, len(source) - at) for at in range(0, len(source), data.shard_rows)]
    size = 2 * elements * DTYPES[data.cache_dtype].itemsize
    folder = builder.build(Cache("latents", manifest, lineage(config), items, size, make))
    return Shards(folder, by="id")


def _latent_shard(
    rows: Iterable[Pair | Rejected],
    geometry: Geometry,
    workers: int,
    batch: int,
    encode: Callable[[list[Tensor], list[bytes]], list[Tensor]],
    advance: Callable[[int], Any],
) -> Shard:
    pairs: list[tuple[Pair, tuple[Placed, Placed]]] = []
    rejected: list[list[str]] = []
    index: dict[bytes, int] = {}
    latents: dict[int, Tensor] = {}
    waiting: dict[torch.Size, list[tuple[bytes, Tensor]]] = {}  # by shape

    def flush(group: list[tuple[bytes, Tensor]]) -> None:
        keys = [key for key, _ in group]
        latents.update(zip((index[key] for key in keys), encode([pixels for _, pixels in group], keys), strict=True))
        group.clear()

    def place(row: Pair | Rejected) -> tuple[Pair | Rejected, tuple[Placed, Placed] | Rejected]:
        return row, row if isinstance(row, Rejected) else geometry.place(row)

    at = ""
    for row, sides in ahead(place, rows, workers):
        advance(row.place != at)  # a tie kept both ways is one row
        at = row.place
        if isinstance(sides, Rejected):
            if [sides.place, sides.reason] not in rejected[-1:]:
                rejected.append([sides.place, sides.reason])
            continue
        pairs.append((row, sides))
        for side in sides:
            if side.key in index:
                continue
            index[side.key] = len(index)
            if side.latents is not None:
                latents[index[side.key]] = stored(side.latents, torch.float32)
                continue
            group = waiting.setdefault(side.pixels.shape, [])
            group.append((side.key, side.pixels))
            if len(group) >= batch:
                flush(group)
    for group in waiting.values():
        if group:
            flush(group)
    return Shard(
        columns={
            "id": torch.tensor([pair.id for pair, _ in pairs], dtype=torch.int64, device="cpu"),
            "weight": torch.tensor([pair.weight for pair, _ in pairs], dtype=torch.float32, device="cpu"),
            "images": torch.tensor(
                [[index[s.key] for s in sides] for _, sides in pairs], dtype=torch.int64, device="cpu"
            ).view(-1, 2),
            "sizes": torch.tensor(
                [[s.size for s in sides] for _, sides in pairs], dtype=torch.int64, device="cpu"
            ).view(-1, 2, 6),
        },
        items={"image": [latents[number] for number in range(len(index))]},
        lists={"captions": [pair.caption for pair, _ in pairs], "rejected": rejected},
    )


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


def report(latents: Shards, rows: int) -> dict:
    """Return what became of the source's rows: rows, pairs, ties dropped, and each refused row with place and reason.

    Raises UserError when no pair is left.
    """
    rejected = [{"place": place, "reason": reason} for place, reason in latents.list("rejected")]
    corrupt = [row for row in rejected if row["reason"] != TIE]
    found = {"rows": rows, "pairs": len(latents), "ties_dropped": len(rejected) - len(corrupt), "refused": corrupt}
    if not len(latents):
        raise UserError(f"data.source gives no pair to train on: {describe(found)}")
    return found


def describe(found: dict) -> str:
    """Put a `report` into a sentence."""
    reasons = Counter(row["reason"] for row in found["refused"])
    refused = ", ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "none"
    first = f", first at {found['refused'][0]['place']}" if found["refused"] else ""
    return (
        f"{found['rows']} rows, {found['pairs']} pairs, {found['ties_dropped']} ties dropped, refused: {refused}{first}"
    )
