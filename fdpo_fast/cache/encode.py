"""The caches of images and captions: latents once per image, embeddings once per distinct caption.

None of them depends on divergence, beta, ratio_scale, learning rate or optimizer: one set serves a whole sweep.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fdpo_fast import noise
from fdpo_fast.cache.build import Builder, Cache
from fdpo_fast.cache.shards import Shard, Shards
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.images import Geometry, Placed, to_vae
from fdpo_fast.data.pairs import TIE, Pair, PairSource, Rejected
from fdpo_fast.files import digest

if TYPE_CHECKING:
    from fdpo_fast.models.family import Family

VERSION = 2  # of what the shards hold
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CAPTIONS_PER_SHARD = 1024


def lineage(config: Config) -> dict[str, str]:
    """What a user calls the same data and model."""
    return {"data.source": config.data.source, "model.base": config.model.base}


def stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the dtype of the cache; UserError where that cannot hold it."""
    out = tensor.to("cpu", dtype)
    if not out.isfinite().all():
        raise UserError(f"a latent or text embedding does not fit {dtype}: set data.cache_dtype to fp32 or bf16")
    return out


# --- latents ----------------------------------------------------------------------------------------------------


def cache_latents(config: Config, source: PairSource, family: Family, builder: Builder) -> Shards:
    """Decode every pair once and encode every image once (within a shard of rows).

    A shard's entries are pairs: `id`, `weight`, `images` [2] (preferred, dispreferred: which of the shard's items),
    `sizes` [2, 6] (`images.Placed.size`); its items are the images' latents, [c, h, w] or, as moments, [2, c, h, w].
    Lists: `captions`, and `rejected` rows with place and reason.
    """
    data = config.data
    vae_factor, unet_factor = family.factors()
    geometry = Geometry(data, config.reference.seed, vae_factor, unet_factor)
    manifest = {
        "version": VERSION,
        "source": source.identity(),
        "geometry": geometry.identity(),
        "vae": family.digest("vae"),
        "latents": data.latents,
        "dtype": data.cache_dtype,
        "shard_rows": data.shard_rows,
    } | ({"noise": noise.NOISE_SPEC} if data.latents == "sample" else {})
    encoders: list[Callable[[Tensor], tuple[Tensor, Tensor]]] = []

    def encode(pixels: list[Tensor], keys: list[bytes]) -> list[Tensor]:
        if not encoders:  # loaded only where something is missing
            encoders.append(family.image_encoder(builder.rank.device))
        moments = encoders[0](to_vae(torch.stack(pixels)))
        return list(stored(kept(*moments, keys, data.latents), DTYPES[data.cache_dtype]))

    def make(shard: int, advance: Callable[[int], Any]) -> Shard:
        rows = source.read(shard * data.shard_rows, (shard + 1) * data.shard_rows)
        return _latent_shard(rows, geometry, data.workers, data.encode_batch, encode, advance)

    numbers = [geometry.sizes()[0][axis] // vae_factor for axis in (0, 1)]
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
            "id": torch.tensor([pair.id for pair, _ in pairs], dtype=torch.int64),
            "weight": torch.tensor([pair.weight for pair, _ in pairs], dtype=torch.float32),
            "images": torch.tensor([[index[s.key] for s in sides] for _, sides in pairs], dtype=torch.int64).view(
                -1, 2
            ),
            "sizes": torch.tensor([[s.size for s in sides] for _, sides in pairs], dtype=torch.int64).view(-1, 2, 6),
        },
        items={"image": [latents[number] for number in range(len(index))]},
        lists={"captions": [pair.caption for pair, _ in pairs], "rejected": rejected},
    )


def ahead(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """`map` by `workers` threads that stay a few items ahead of the caller, in order."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_POSTERIOR = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
"""Keys of the posterior's own noise (preferred, dispreferred side); the draws of training have small seeds."""


def kept(mean: Tensor, std: Tensor, keys: list[bytes], latents: str) -> Tensor:
    """What `data.latents` keeps of images' posteriors [n, c, h, w]: mode, [n, 2, c, h, w] moments, or a sample.

    The sample is a function of the image (its key) alone, whatever pair it is in.
    """
    if latents == "moments":
        return torch.stack([mean, std], dim=1)
    if latents == "mode":
        return mean
    ids = torch.tensor([int.from_bytes(key[:7], "little") for key in keys])
    eps = noise.normals(noise.draws(_POSTERIOR[0], ids, 0), mean[0].numel())
    return mean + std * eps.reshape(mean.shape).to(mean.device)


def sampled(latents: Tensor, ids: Tensor, visits: Tensor, seed: int) -> Tensor:
    """A sample of moments [b, 2 (side), 2 (mean, deviation), c, h, w] for each visit: [b, 2, c, h, w]."""
    eps = [noise.normals(noise.draws(key ^ seed, ids, visits), latents[0, 0, 0].numel()) for key in _POSTERIOR]
    mean, std = latents.unbind(2)
    return mean + std * torch.stack(eps, dim=1).reshape(mean.shape)


def report(latents: Shards, rows: int) -> dict:
    """What became of the source's rows: rows, pairs, ties dropped, and the rows refused with their place and reason.

    Raises UserError when no pair is left.
    """
    rejected = [{"place": place, "reason": reason} for place, reason in latents.list("rejected")]
    corrupt = [row for row in rejected if row["reason"] != TIE]
    found = {"rows": rows, "pairs": len(latents), "ties_dropped": len(rejected) - len(corrupt), "refused": corrupt}
    if not len(latents):
        raise UserError(f"data.source gives no pair to train on: {describe(found)}")
    return found


def describe(found: dict) -> str:
    """`report` in a sentence."""
    reasons = Counter(row["reason"] for row in found["refused"])
    refused = ", ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "none"
    first = f", first at {found['refused'][0]['place']}" if found["refused"] else ""
    return (
        f"{found['rows']} rows, {found['pairs']} pairs, {found['ties_dropped']} ties dropped, refused: {refused}{first}"
    )


# --- text -------------------------------------------------------------------------------------------------------


def cache_text(
    config: Config, latents: Shards, source: PairSource, family: Family, builder: Builder
) -> tuple[Shards, dict[str, int]]:
    """Embed every distinct caption once, the empty one included; returns the shards and each caption's entry.

    Embeddings that the source brings along are taken as they are; the empty caption's, for dropout, is still encoded.
    """
    dtype = DTYPES[config.data.cache_dtype]
    captions = latents.list("captions")
    distinct = ["", *(caption for caption in dict.fromkeys(captions) if caption)]
    ready = _ready_keys(source, family)
    rows = dict(zip(reversed(captions), (latents.column("id") >> 1).flip(0).tolist(), strict=True)) if ready else {}
    manifest = {
        "version": VERSION,
        "text": family.digest(*family.text_components),
        "captions": digest(distinct),
        "embeddings": source.identity() if ready else None,
        "dtype": config.data.cache_dtype,
    }
    encoders: list[Callable[[list[str]], dict[str, Tensor]]] = []

    def encode(part: list[str]) -> dict[str, list[Tensor]]:
        if not encoders:
            # of embeddings that came ready only the empty caption's is missing: no model goes to the GPU for that
            encoders.append(family.text_encoder(torch.device("cpu") if ready else builder.rank.device))
        return {key: list(value) for key, value in encoders[0](part).items()}

    def make(shard: int, advance: Callable[[int], Any]) -> Shard:
        part = distinct[shard * _CAPTIONS_PER_SHARD : (shard + 1) * _CAPTIONS_PER_SHARD]
        items: dict[str, list[Tensor]] = {key: [] for key in family.text_keys}
        found = _embeddings(source, part, rows) if rows else {}
        if rows and "" in part and "" not in rows:
            found[""] = {key: value[0] for key, value in encode([""]).items()}
        step = config.data.encode_batch
        for at in range(0, len(part), step):
            chunk = part[at : at + step]
            encoded = {key: [found[c][key] for c in chunk] for key in family.text_keys} if rows else encode(chunk)
            for key, values in encoded.items():
                items[key] += [stored(value, dtype) for value in values]
            advance(len(chunk))
        return Shard(items=items)

    counts = [min(_CAPTIONS_PER_SHARD, len(distinct) - at) for at in range(0, len(distinct), _CAPTIONS_PER_SHARD)]
    cache = Cache("text", manifest, lineage(config), counts, family.text_elements() * dtype.itemsize, make)
    return Shards(builder.build(cache), by=family.text_keys[0]), {caption: row for row, caption in enumerate(distinct)}


def _ready_keys(source: PairSource, family: Family) -> bool:
    """Whether the source brings the embeddings; UserError when only some of them."""
    found = getattr(source, "embedded", [])
    missing = [key for key in family.text_keys if key not in found]
    if found and missing:
        raise UserError(f"data.source has the column {', '.join(found)} but not {', '.join(missing)}: give all or none")
    return bool(found)


def _embeddings(source: Any, captions: list[str], rows: dict[str, int]) -> dict[str, dict[str, Tensor]]:
    """By caption. Captions are in the order of their first row, so those of a shard lie close together."""
    wanted = {rows[caption] for caption in captions if caption in rows}
    found: dict[str, dict[str, Tensor]] = {}
    if wanted:
        first = min(wanted)
        for row, (caption, values) in enumerate(source.embeddings(first, max(wanted) + 1), first):
            if row in wanted:
                found[caption] = {key: torch.from_numpy(value) for key, value in values.items()}
                bad = [key for key, value in found[caption].items() if not value.isfinite().all()]
                first = next(iter(found.values()))
                bad += [key for key, value in found[caption].items() if value.shape != first[key].shape]
                if bad:
                    raise UserError(
                        f"row {row} of data.source: {bad[0]} is not finite, or of another shape: drop the row"
                    )
    return found
