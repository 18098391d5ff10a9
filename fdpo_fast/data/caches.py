"""The three caches that training runs from: latents, text embeddings, reference errors.

Each is a folder of shards named by the digest of everything it depends on, so a stale cache is never read. None of
them depends on divergence, beta, ratio_scale, learning rate or optimizer: one set serves a whole sweep.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fdpo_fast import noise
from fdpo_fast.config import Config
from fdpo_fast.data import shards
from fdpo_fast.data.files import digest
from fdpo_fast.data.images import square
from fdpo_fast.data.pairs import Pair, PairSource, Rejected
from fdpo_fast.data.pickapic import TIE, PickAPic
from fdpo_fast.data.shards import Shards
from fdpo_fast.reference import denoising_error

if TYPE_CHECKING:
    from fdpo_fast.models.family import Family

READERS: dict[str, Callable[..., PairSource]] = {"pickapic": PickAPic}

_VERSION = 1  # of the layout of the shards
_CAPTIONS_PER_SHARD = 1024


@dataclass(frozen=True)
class Rank:
    """The process among those of the run."""

    index: int
    count: int
    device: torch.device
    barrier: Callable[[], None]


@dataclass(frozen=True)
class Batch:
    """b pairs in halves layout: rows 0..b-1 preferred, b..2b-1 dispreferred, sharing timestep, noise and caption."""

    latents: Tensor  # [2b, c, h, w] float32
    noise: Tensor  # [2b, c, h, w] float32
    timesteps: Tensor  # [2b] int64
    condition: dict[str, Tensor]  # each [2b, ...]
    weight: Tensor  # [b] float32
    ref_error: Tensor | None  # [2b] float64, from the cache


def cache_latents(config: Config, source: PairSource, family: Family, rank: Rank) -> Shards:
    """Decode every pair once and keep its latents [2, c, h, w], id, weight and caption, with the rows refused."""
    data = config.data
    manifest = {
        "version": _VERSION,
        "source": source.identity(),
        "resolution": data.resolution,
        "vae": family.digest("vae"),
        "shard_rows": data.shard_rows,
    }
    encoders: list[Callable[[Tensor], Tensor]] = []

    def make(shard: int) -> shards.Shard:
        if not encoders:  # loaded only where something is missing
            encoders.append(family.image_encoder(rank.device))
        latents, pairs, rejected = [], [], []
        waiting: list[Tensor] = []

        def flush() -> None:
            if waiting:
                latents.append(encoders[0](torch.cat(waiting)).cpu().unflatten(0, (-1, 2)))
                waiting.clear()

        for item in source.read(shard * data.shard_rows, (shard + 1) * data.shard_rows):
            if isinstance(item, Rejected):
                rejected.append([item.place, item.reason])
                continue
            pairs.append(item)
            waiting.append(torch.stack([square(side, data.resolution) for side in (item.preferred, item.dispreferred)]))
            if len(waiting) * 2 >= data.encode_batch:
                flush()
        flush()
        return _latent_shard(latents, pairs, rejected)

    count = -(-len(source) // data.shard_rows)
    folder = shards.build(_root(config), "latents", manifest, count, make, rank.index, rank.count)
    rank.barrier()
    return Shards(folder)


def _latent_shard(latents: list[Tensor], pairs: list[Pair], rejected: list[list[str]]) -> shards.Shard:
    tensors = {
        "latents": torch.cat(latents) if latents else torch.empty(0, 2),
        "id": torch.tensor([pair.id for pair in pairs], dtype=torch.int64),
        "weight": torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
    }
    return tensors, {"captions": json.dumps([pair.caption for pair in pairs]), "rejected": json.dumps(rejected)}


def report(latents: Shards, rows: int) -> dict:
    """What became of the source's rows: rows, pairs, ties dropped, and the rows refused with their place and reason.

    Raises ValueError when no pair is left.
    """
    rejected = [{"place": place, "reason": reason} for place, reason in latents.metadata("rejected")]
    corrupt = [row for row in rejected if row["reason"] != TIE]
    found = {"rows": rows, "pairs": len(latents), "ties_dropped": len(rejected) - len(corrupt), "refused": corrupt}
    if not len(latents):
        raise ValueError(f"data.source gives no pair to train on: {describe(found)}")
    return found


def describe(found: dict) -> str:
    """`report` in a sentence."""
    reasons = Counter(row["reason"] for row in found["refused"])
    refused = ", ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "none"
    first = f", first at {found['refused'][0]['place']}" if found["refused"] else ""
    return (
        f"{found['rows']} rows, {found['pairs']} pairs, {found['ties_dropped']} ties dropped, refused: {refused}{first}"
    )


def cache_text(config: Config, captions: list[str], family: Family, rank: Rank) -> tuple[Shards, dict[str, int]]:
    """Embed every distinct caption once, the empty one included; returns the shards and each caption's row."""
    distinct = sorted({*captions, ""})
    manifest = {"version": _VERSION, "text": family.digest(*family.text_components), "captions": digest(distinct)}
    encoders: list[Callable[[list[str]], dict[str, Tensor]]] = []

    def make(shard: int) -> shards.Shard:
        if not encoders:
            encoders.append(family.text_encoder(rank.device))
        part = distinct[shard * _CAPTIONS_PER_SHARD : (shard + 1) * _CAPTIONS_PER_SHARD]
        step = config.data.encode_batch
        encoded = [encoders[0](part[i : i + step]) for i in range(0, len(part), step)]
        return {key: torch.cat([piece[key] for piece in encoded]) for key in encoded[0]}, {}

    count = -(-len(distinct) // _CAPTIONS_PER_SHARD)
    folder = shards.build(_root(config), "text", manifest, count, make, rank.index, rank.count)
    rank.barrier()
    return Shards(folder), {caption: row for row, caption in enumerate(distinct)}


class TrainingSet:
    """Batches of pairs from the caches. What a pair's visit looks like depends on (seed, pair id, visit) alone."""

    def __init__(self, config: Config, family: Family, rank: Rank, source: PairSource) -> None:
        self.latents = cache_latents(config, source, family, rank)
        self.report = report(self.latents, len(source))
        captions = self.latents.metadata("captions")
        self.text, rows = cache_text(config, captions, family, rank)
        self.caption = torch.tensor([rows[caption] for caption in captions])
        self.empty_caption = rows[""]
        self.id, self.weight = self.latents.column("id"), self.latents.column("weight")
        self.seed, self.dropout = config.train.seed, config.data.caption_dropout
        self.timesteps = family.schedule.config.num_train_timesteps
        self.device = rank.device
        self.reference: Shards | None = None

    def __len__(self) -> int:
        return len(self.id)

    def batch(self, positions: Tensor, visits: Tensor) -> Batch:
        """The pairs at `positions` [b] on their `visits` [b] (both int64 on the CPU)."""
        ids = self.id[positions]
        latents = self.latents.rows("latents", positions)  # [b, 2, c, h, w]
        timesteps, eps = noise.pair_draw(self.seed, ids, visits, latents.shape[2:], num_train_timesteps=self.timesteps)
        dropped = noise.uniforms(noise.draws(self.seed, ids, visits), noise.CAPTION) < self.dropout
        captions = self.caption[positions].masked_fill(dropped, self.empty_caption)
        condition = {key: self.text.rows(key, captions) for key in self.text.names}
        ref_error = None
        if self.reference:
            stored = self.reference.rows("error", positions)  # [b, visits, 2]
            ref_error = stored[torch.arange(len(positions)), visits].T.flatten().to(self.device)
        return Batch(
            latents=latents.transpose(0, 1).flatten(0, 1).to(self.device),
            noise=torch.cat([eps, eps]).to(self.device),
            timesteps=torch.cat([timesteps, timesteps]).to(self.device),
            condition={key: torch.cat([value, value]).to(self.device) for key, value in condition.items()},
            weight=self.weight[positions].to(self.device),
            ref_error=ref_error,
        )

    def cache_reference(self, config: Config, family: Family, rank: Rank, load: Callable[[], nn.Module]) -> None:
        """Compute the reference errors of `reference.visits` draws per pair once; `batch` gives them from then on."""
        visits = config.reference.visits
        manifest = {
            "version": _VERSION,
            "unet": family.digest("unet"),
            # these names are digests: of source, labels, VAE, resolution and sharding; of captions and text encoder
            "latents": self.latents.folder.name,
            "text": self.text.folder.name,
            "schedule": digest(dict(family.schedule.config)),
            "noise": noise.NOISE_SPEC,
            "seed": self.seed,
            "visits": visits,
            "caption_dropout": self.dropout,
            "dtype": config.model.dtype,
        }
        models: list[nn.Module] = []

        @torch.no_grad()
        def make(shard: int) -> shards.Shard:
            if not models:
                models.append(load().to(rank.device).eval())
            start, stop = self.latents.starts[shard : shard + 2]
            errors = torch.empty(stop - start, visits, 2, dtype=torch.float64)
            for first in range(start, stop, config.data.encode_batch):
                positions = torch.arange(first, min(first + config.data.encode_batch, stop))
                for visit in range(visits):
                    batch = self.batch(positions, torch.full_like(positions, visit))
                    pred, target = predict(family, models[0], batch)
                    error = denoising_error(pred, target, torch.float64).cpu()
                    errors[positions - start, visit] = error.unflatten(0, (2, -1)).T
            return {"error": errors}, {}

        count = len(self.latents.files)
        folder = shards.build(_root(config), "reference", manifest, count, make, rank.index, rank.count)
        rank.barrier()
        self.reference = Shards(folder)
        if len(self.reference) != len(self):
            raise ValueError(f"the cache {folder} holds {len(self.reference)} rows for {len(self)} pairs: delete it")


def predict(family: Family, unet: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(prediction, target) of a batch, each [2b, c, h, w]."""
    noisy = family.noisy(batch.latents, batch.noise, batch.timesteps)
    target = family.target(batch.latents, batch.noise, batch.timesteps)
    return family.predict(unet, noisy, batch.timesteps, batch.condition), target


def _root(config: Config) -> Path:
    return Path(config.data.cache_dir).expanduser()
