"""Fill the caches of a configuration: `fdpo cache --config ...`, or by several GPUs
`deepspeed --num_gpus N --module fdpo_fast.cli cache --config ...`.

`fdpo cache verify --config ...` checks every checksum and recomputes a random sample from the images and the models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fdpo_fast.cache.build import Builder
from fdpo_fast.cache.latents import describe, kept
from fdpo_fast.cache.open import Prepared, cache_root, caches_of, look_for, reference_model
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.images import Geometry, to_vae
from fdpo_fast.data.pairs import Rejected, brought_by
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.distributed import Rank, start_processes

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-2}
"""Largest difference, relative to the largest value, that batch composition and the cache's dtype explain."""


def fill(config: Config) -> None:
    """Build what is missing and say what is there."""
    look_for(config)
    rank = start_processes()
    data = caches_of(config, rank, Builder(cache_root(config), rank, requested=True)).data
    rank.say(f"data: {describe(data.report)}")
    for kind, name in data.report["caches"].items():
        rank.say(f"{kind}: {data.builder.root / name}")


def verify(config: Config, pairs: int, seed: int) -> None:
    """Compare all checksums, then recompute a sample of pairs; UserError where something differs too much."""
    look_for(config)
    rank = start_processes()
    prepared = caches_of(config, rank, Builder(cache_root(config), rank, complete=True))
    found = differences(prepared, rank, pairs, seed)
    failed = []
    for kind, (difference, scale) in found.items():
        limit = TOLERANCE[config.model.dtype if kind == "reference" else config.data.cache_dtype]
        relative = difference / max(scale, 1e-30)
        rank.say(f"{kind}: largest difference {difference:.3g}, {relative:.2g} of the largest value (limit {limit:g})")
        if not relative <= limit:
            failed.append(str(prepared.data.builder.root / prepared.data.report["caches"][kind]))
    if failed:
        raise UserError(f"{' and '.join(failed)} do not hold what is computed now: delete them")
    rank.say("the caches hold what is computed now")


def differences(prepared: Prepared, rank: Rank, pairs: int, seed: int) -> dict[str, tuple[float, float]]:
    """Return (largest difference, largest value) by kind of cache, on a random sample of pairs, recomputed now."""
    config, family, data = prepared.config, prepared.family, prepared.data
    rank.say(f"{sum(store.check_all() for store in data.stores)} checksums match")
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(len(data), generator=generator, dtype=torch.int64, device="cpu")[:pairs].sort().values
    found: dict[str, tuple[float, float]] = {}
    if (latents := _latents(prepared, rank, positions)) is not None:
        found["latents"] = latents
    captions = sorted({data.captions[at] for at in positions.tolist()} | {""})
    if not brought_by(open_source(config.data)):
        encoder = family.text_encoder(rank.device)
        encoded = encoder(captions)
        stored = {key: torch.stack([data.text.entry(key, data.entries[c]) for c in captions]) for key in encoded}
        found["text"] = _worst([(stored[key], encoded[key]) for key in encoded])
    if data.reference is not None:
        denoiser = reference_model(config, family, rank.device)
        pieces = []
        for position in positions:
            visit = torch.randint(
                config.reference.stored_visits(), (1,), generator=generator, dtype=torch.int64, device="cpu"
            )
            fresh = data.reference_errors(denoiser, position[None], visit)
            pieces.append((data.reference[position, visit], fresh))
        found["reference"] = _worst(pieces)
    return found


def _latents(prepared: Prepared, rank: Rank, positions: Tensor) -> tuple[float, float] | None:
    """Compare the images at `positions`, decoded and encoded again; None where latents came ready."""
    config, family, data = prepared.config, prepared.family, prepared.data
    geometry = Geometry(config.data, config.reference.seed, family.facts.vae_factor, family.facts.denoiser_factor)
    encoder = family.image_encoder(rank.device)
    source, pieces = open_source(config.data), []
    wanted = set(data.id[positions].tolist())
    at = {int(data.id[position]): int(position) for position in positions}
    for shard in sorted({data.latents.shard_of(position) for position in positions.tolist()}):
        for row in source.read(shard * config.data.shard_rows, (shard + 1) * config.data.shard_rows):
            if isinstance(row, Rejected) or row.id not in wanted:
                continue
            sides = geometry.place(row)
            if isinstance(sides, Rejected):
                raise UserError(f"{sides.place} is in the cache, but now {sides.reason}: run `fdpo cache` again")
            pixels = [side.pixels for side in sides if side.pixels is not None]
            if not pixels:
                return None
            moments = encoder(to_vae(torch.stack(pixels)))
            fresh = kept(*moments, [side.key for side in sides], config.data.latents)
            pieces.append((data.pair_latents(at[row.id]), fresh))
    return _worst(pieces)


def _worst(pieces: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    largest = max((kept.float() - fresh.cpu().float()).abs().max().item() for kept, fresh in pieces)
    return largest, max(fresh.abs().max().item() for _, fresh in pieces)
