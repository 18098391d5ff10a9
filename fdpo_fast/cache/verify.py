"""Fill the caches of a configuration: `fdpo cache --config ...`, or by several GPUs
`deepspeed --num_gpus N --module fdpo_fast.cli cache --config ...`.

`fdpo cache verify --config ...` checks every checksum and recomputes a random sample from the images and the models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fdpo_fast.cache.build import Builder
from fdpo_fast.cache.dataset import geometry_of, image_encoder
from fdpo_fast.cache.latents import kept
from fdpo_fast.cache.open import Prepared, cache_root, caches_of, look_for, reference_family, reference_model
from fdpo_fast.cache.pairs import Refused
from fdpo_fast.cache.report import describe
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.images import Geometry
from fdpo_fast.data.pairs import BY_CHOICE, Pair, ReadyLatents, Rejected, brought_by
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.data.reading import UnusableError
from fdpo_fast.distributed import Rank, start_processes
from fdpo_fast.models.placement import collect
from fdpo_fast.progress import progress

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
    data = config.data
    dtypes = {
        "latents": (data.vae_dtype, data.cache_dtype),
        "text": (data.cache_dtype,),
        "reference": (config.model.dtype,),
    }
    for kind, (difference, scale) in found.items():
        limit = max(TOLERANCE[dtype] for dtype in dtypes[kind])
        relative = difference / max(scale, 1e-30)
        rank.say(f"{kind}: largest difference {difference:.3g}, {relative:.2g} of the largest value (limit {limit:g})")
        if not relative <= limit:
            failed.append(str(prepared.data.builder.root / prepared.data.report["caches"][kind]))
    if failed:
        raise UserError(f"{' and '.join(failed)} do not hold what is computed now: delete them")
    usable, refused = usable_now(prepared)
    if usable:
        folders = (
            str(prepared.data.builder.root / prepared.data.report["caches"][kind]) for kind in ("pairs", "latents")
        )
        raise UserError(
            f"{len(usable)} of {refused} rows that the cache refused can be used now, first {usable[0].place} "
            f"({usable[0].reason}): delete {' and '.join(folders)}, and run `fdpo cache` again"
        )
    if refused:
        rank.say(f"{refused} refused rows were looked at again: none can be used")
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
        stored = {key: torch.stack([data.text.entry(key, data.entries[c, 0]) for c in captions]) for key in encoded}
        found["text"] = _worst([(stored[key], encoded[key]) for key in encoded])
        del encoder
        collect()  # the reference takes their place
    if data.reference is not None:
        denoiser = reference_model(config, reference_family(config, family), rank.device)
        pieces = []
        for position in positions:
            visit = torch.randint(
                config.reference.stored_visits(), (1,), generator=generator, dtype=torch.int64, device="cpu"
            )
            fresh = data.reference_errors(denoiser, position[None], visit)
            pieces.append((data.reference[position, visit], fresh))
        found["reference"] = _worst(pieces)
    return found


def usable_now(prepared: Prepared) -> tuple[list[Refused], int]:
    """Look again at the rows that were refused; returns those of which a pair can be used now, and their number."""
    config, pairs = prepared.config, prepared.data.pairs
    source, geometry = open_source(config.data), geometry_of(config, prepared.family.facts)
    before = {one.row: one for one in reversed(pairs.refused) if one.reason not in BY_CHOICE}
    usable = []
    for row in progress(sorted(before), desc="looking at refused rows", leave=False):
        good = sum(_reason(item, geometry) is None for item in source.read(row, row + 1))
        if good > int((pairs.row == row).sum()):
            usable.append(before[row])
    return usable, len(before)


def _reason(item: Pair | Rejected, geometry: Geometry) -> str | None:
    """Return why a row gives no pair; None where it does."""
    sides = item if isinstance(item, Rejected) else geometry.place(item)
    if isinstance(sides, Rejected):
        return sides.reason
    try:
        for side in sides:
            if not isinstance(side.side, ReadyLatents):
                side.pixels(geometry.data.max_megapixels)
    except UnusableError as error:
        return str(error)
    return None


def _latents(prepared: Prepared, rank: Rank, positions: Tensor) -> tuple[float, float] | None:
    """Compare the images at `positions`, decoded and encoded again; None where latents came ready."""
    config, data = prepared.config, prepared.data
    geometry, source, pieces = geometry_of(config, prepared.family.facts), open_source(config.data), []
    encoder = image_encoder(config, prepared.family, rank.device)
    for position in positions.tolist():
        row = int(data.pairs.row[position])
        pair = next((one for one in source.read(row, row + 1) if _is(one, int(data.id[position]))), None)
        sides = geometry.place(pair) if isinstance(pair, Pair) else None
        if not isinstance(sides, tuple):
            reason = sides.reason if sides else "it gives no such pair"
            raise UserError(f"row {row} of data.source is in the cache, but now {reason}: run `fdpo cache` again")
        if isinstance(sides[0].side, ReadyLatents):
            return None
        pixels = torch.stack([side.pixels(config.data.max_megapixels) for side in sides])
        fresh = kept(*encoder(pixels), [side.key for side in sides], config.data.latents)
        pieces.append((data.pair_latents(position), fresh))
    return _worst(pieces)


def _is(item: Pair | Rejected, id: int) -> bool:
    return isinstance(item, Pair) and item.id == id


def _worst(pieces: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    largest = max((kept.float() - fresh.cpu().float()).abs().max().item() for kept, fresh in pieces)
    return largest, max(fresh.abs().max().item() for _, fresh in pieces)
