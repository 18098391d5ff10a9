"""Batches of pairs from the caches, and the cache of reference errors that is made from such batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fdpo_fast import noise
from fdpo_fast.cache.build import Builder, Cache, lineage
from fdpo_fast.cache.held_out import held_out
from fdpo_fast.cache.latents import cache_latents, sampled
from fdpo_fast.cache.pairs import cache_pairs
from fdpo_fast.cache.report import report, warnings
from fdpo_fast.cache.shards import Shard, Shards
from fdpo_fast.cache.text import EMPTY, cache_text, check_embeddings
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.found import left_out
from fdpo_fast.data.images import Geometry
from fdpo_fast.data.pairs import PairSource
from fdpo_fast.files import digest
from fdpo_fast.models import prediction
from fdpo_fast.models.kernels import kernels
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.models.process import is_flow
from fdpo_fast.ops.constants import Stream
from fdpo_fast.ops.pairs import both, to_pairs, to_rows
from fdpo_fast.progress import Bar

if TYPE_CHECKING:
    from fdpo_fast.models.denoiser import Denoiser
    from fdpo_fast.models.facts import Facts
    from fdpo_fast.models.family import Family
    from fdpo_fast.models.vae import ImageEncoder


VERSION = 4  # of how reference errors are computed


@dataclass(frozen=True)
class Batch:
    """b pairs in halves layout: rows 0..b-1 preferred, b..2b-1 dispreferred, sharing timestep, noise and caption."""

    latents: Tensor  # [2b, c, h, w] float32
    draws: Tensor  # [3, b] int64: what timestep and noise follow from
    condition: dict[str, Tensor]  # each [2b, ...]
    weight: Tensor  # [b] float32
    ref_error: Tensor | None  # [2b] float64, from the cache
    density: Tensor | None = None  # [T] int64, see `noise.timesteps`: how likely each timestep is; None for all alike


def image_encoder(config: Config, family: Family, device: torch.device) -> ImageEncoder:
    """Load the VAE as the configuration has it encode the images of the pairs."""
    return family.image_encoder(device, DTYPES[config.data.vae_dtype], config.data.vae_compile)


def geometry_of(config: Config, facts: Facts) -> Geometry:
    """Return how the images of the pairs are cut for a model; UserError where its sizes do not divide."""
    return Geometry(config.data, config.reference.seed, facts.vae_factor, facts.denoiser_factor, facts.channels)


class TrainingSet:
    """The pairs of a source. What a pair's visit looks like depends on (reference.seed, pair id, visit) alone.

    held: where `data.validation` is a share, whether those are meant that are held out, or the others.
    """

    def __init__(
        self, config: Config, family: Family, source: PairSource, builder: Builder, held: bool = False
    ) -> None:
        self.config, self.family, self.builder = config, family, builder
        facts, self.device, data = family.facts, builder.rank.device, config.data
        self.timesteps = config.reference.timesteps.settled(is_flow(family.schedule))
        density = self.timesteps.table(family.steps)
        self.density = None if density is None else density.to(self.device)
        geometry = geometry_of(config, facts)
        check_embeddings(config, source, facts)
        found = cache_pairs(config, source, geometry, builder)
        if isinstance(share := data.validation, float):
            found = found.only(held_out(found.captions, share, config.reference.seed) == held)
        left = left_out(source)
        for words in warnings(report(found, source, left, data)):  # before hours of encoding
            builder.rank.warn(words)
        check_embeddings(config, source, facts, found.captions)
        self.latents, self.images, pairs = cache_latents(
            config, source, found, geometry, facts, lambda: image_encoder(config, family, self.device), builder
        )
        self.pairs, self.report = pairs, report(pairs, source, left, data)
        self.text, self.entries = cache_text(config, pairs, source, facts, family.text_encoder, family.excess, builder)
        self.captions = pairs.captions
        self.caption = torch.tensor([self.entries[text] for text in pairs.texts()], dtype=torch.int64, device="cpu")
        self.report["over_length"] = int((self.text.column("excess") > 0).sum())
        self.report["caches"] = {
            "pairs": pairs.folder,
            "latents": self.latents.folder.name,
            "text": self.text.folder.name,
        }
        self.stores = [self.latents, self.text]
        self.id, self.weight, self.sizes = pairs.id, pairs.weight, pairs.sizes
        self.seed, self.micro = config.reference.seed, config.train.pairs_per_micro_batch
        self.reference: Tensor | None = None  # [pairs, visits, 2] float64

    def __len__(self) -> int:
        return len(self.id)

    @property
    def shapes(self) -> Tensor:
        """Return height and width in pixels of each pair, [pairs, 2]: a batch is of one."""
        return self.sizes[:, 0, 4:6]

    def batch(self, positions: Tensor, visits: Tensor) -> Batch:
        """Return the pairs at `positions` [b] on their `visits` [b] (both int64 on the CPU)."""
        ids = self.id[positions]
        draws = noise.draws(self.seed, ids, visits)
        latents = torch.stack([self.pair_latents(position) for position in positions.tolist()])
        if self.config.data.latents == "moments" and latents.ndim == 6:
            latents = sampled(latents, ids, visits, self.seed)
        dropped = noise.uniforms(draws, Stream.CAPTION) < self.config.data.caption_dropout
        captions = self.caption[positions].masked_fill(dropped, self.entries[EMPTY]).tolist()
        text = {key: torch.stack([self.text.entry(key, at) for at in captions]) for key in self.family.facts.text_keys}
        sizes = to_rows(self.sizes[positions])
        told = {key: both(values) for key, values in text.items()}
        condition = self.family.condition(told, sizes, self.config.model)
        ref_error = None
        if self.reference is not None:
            ref_error = to_rows(self.reference[positions, visits]).to(self.device)
        return Batch(
            latents=to_rows(latents).to(self.device),
            draws=draws.to(self.device),
            condition={k: v if k in self.family.on_host else v.to(self.device) for k, v in condition.items()},
            weight=self.weight[positions].to(self.device),
            ref_error=ref_error,
            density=self.density,
        )

    def pair_latents(self, position: int) -> Tensor:
        """Return both sides of a pair as they are stored, [2, ...], in float32."""
        return torch.stack([self.latents.entry("image", at) for at in self.images[position].tolist()]).float()

    def cache_reference(self, load: Callable[[], Denoiser], denoiser: str | None = None) -> None:
        """Compute the reference errors of `reference.visits` draws per pair once; `batch` gives them from then on.

        `load` gives the reference model, ready to run; it is asked only where something is missing. denoiser: the
        digest of its files; None: it is the base's.
        """
        config, family = self.config, self.family
        visits = config.reference.stored_visits()
        density = None if self.density is None else self.timesteps.model_dump(mode="json", exclude_none=True)
        manifest = {
            "version": VERSION,
            "unet": denoiser or family.denoiser_digest(),
            "pairs": self.pairs.digest(),
            # names by digest: of images, VAE and geometry; of captions and text encoders
            "latents": self.latents.folder.name,
            "text": self.text.folder.name,
            "captions": digest(self.caption.tolist()),  # which pair has which
            "scheduler": digest(dict(family.schedule.config)),
            "prediction_type": family.prediction,
            "noise": noise.NOISE_SPEC,
            "seed": self.seed,
            "visits": visits,
            **({} if density is None else {"timesteps": density}),
            **{key: value for key, value in config.model if key in ("guidance", "quantization") and value is not None},
            "caption_dropout": config.data.caption_dropout,
            "dtype": config.model.dtype,
            "kernels": kernels(config.model, self.micro, self.device),
        }
        model = cache(load)
        starts = [*range(0, len(self), config.data.shard_rows), len(self)]

        def make(shard: int, bar: Bar) -> Shard:
            start, stop = starts[shard : shard + 2]
            found = torch.full((stop - start, visits, 2), torch.nan, dtype=torch.float64, device="cpu")
            for positions in self._of_one_shape(start, stop):
                for visit in range(visits):
                    found[positions - start, visit] = self.reference_errors(
                        model(), positions, torch.full_like(positions, visit)
                    )
                bar.update(len(positions))
            if not (finite := found.isfinite().flatten(1).all(1)).all():
                pair = start + int(finite.logical_not().nonzero()[0])
                raise UserError(
                    f"the reference's error is not finite on {len(finite) - int(finite.sum())} of pairs {start} to "
                    f"{stop - 1}, first on that of row {int(self.pairs.row[pair])} of data.source: its latents and "
                    "embeddings are finite, so the denoiser overflows in model.dtype"
                )
            return Shard(columns={"error": found})

        items = [stop - start for start, stop in pairwise(starts)]
        sizes = [16.0 * visits * count for count in items]
        reference = Cache("reference", manifest, lineage(config), items, "pairs", make, sizes)
        shards = Shards(self.builder.build(reference), by="error")
        self.stores.append(shards)
        self.report["caches"]["reference"] = shards.folder.name
        self.reference = shards.column("error")
        if len(self.reference) != len(self):
            raise UserError(f"{shards.folder} holds {len(self.reference)} rows for {len(self)} pairs: delete it")

    def by_shape(self) -> list[Tensor]:
        """Cut the positions of all pairs into micro-batches that share their shape."""
        return self._of_one_shape(0, len(self))

    def filled(self, positions: Tensor) -> Tensor:
        """Fill positions up to whole micro-batches by repeating the last: libraries choose kernels by shape."""
        count = len(positions)
        whole = torch.arange(-(-count // self.micro) * self.micro, dtype=torch.int64, device="cpu")
        return positions[whole.clamp(max=count - 1)]

    def _of_one_shape(self, start: int, stop: int) -> list[Tensor]:
        """Cut positions [start, stop) into batches that share their shape."""
        shapes, group = torch.unique(self.shapes[start:stop], dim=0, return_inverse=True)
        at = [start + torch.nonzero(group == number).flatten() for number in range(len(shapes))]
        return [part for positions in at for part in positions.split(self.micro)]

    def reference_errors(self, denoiser: Denoiser, positions: Tensor, visits: Tensor) -> Tensor:
        """Compute the errors of both sides of the pairs at `positions` on their `visits`, [b, 2] float64.

        In batches of the size of training's micro-batches: a live reference in the training step rounds alike.
        """
        found = []
        for part, those in zip(*(self.filled(each).split(self.micro) for each in (positions, visits)), strict=True):
            with prediction.as_in_training():
                pred, target, _ = prediction.predict(self.family, denoiser, self.batch(part, those))
            found.append(to_pairs(prediction.errors(pred, target).cpu()))
        return torch.cat(found)[: len(positions)]
