"""From a configuration to the data a run trains on: the family, the pairs, and their caches, built where missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from fdpo_fast.cache.build import Builder
from fdpo_fast.cache.dataset import TrainingSet
from fdpo_fast.cache.held_out import for_validation
from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.readers.detect import detect, open_source
from fdpo_fast.distributed import Rank, check_shared
from fdpo_fast.files import expanded, made
from fdpo_fast.models import find, load_family, quiet_libraries, trainable
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.family import Family
from fdpo_fast.models.placement import by_parts
from fdpo_fast.models.precision import DTYPES


@dataclass(frozen=True)
class Prepared:
    """What training, caching and calibration start from."""

    config: Config
    """With the names of embedded bases replaced by paths."""
    family: Family
    data: TrainingSet
    validation: TrainingSet | None
    """The pairs that are held out."""


def look_for(config: Config) -> None:
    """Raise UserError where model or pairs are not there: before processes join, which may compile for a minute."""
    find(config.model, config.reference.model)
    if config.data.source not in EMBEDDED and config.data.format == "auto":
        detect(config.data.source, config.data.split, config.data.outside)
    if isinstance(config.data.validation, str):
        own = for_validation(config).data
        with _told_of_validation(config):
            detect(own.source, own.split, own.outside)


def caches_of(config: Config, rank: Rank, builder: Builder | None = None) -> Prepared:
    """Open the model and the data and fill their caches; reference errors where `reference.mode` is "cached".

    Collective. Raises UserError for whatever of model, data and caches does not fit.
    """
    quiet_libraries()
    builder = builder or Builder(cache_root(config), rank)
    check_shared(rank, "data.cache_dir", builder.root)
    config = resolve_embedded(config, rank)
    family = load_family(config.model)
    data = TrainingSet(config, family, open_source(config.data), builder)
    of = reference_family(config, family)
    validation, load = None, partial(reference_model, config, of, rank.device)
    if config.data.validation is not None:
        own, builder = for_validation(config), replace(builder, part="validation", resumed={})
        with _told_of_validation(config):
            validation = TrainingSet(own, family, open_source(own.data), builder, held=True)
        validation.cache_reference(load, of.denoiser_digest())
        data.report["validation"] = validation.report
    if config.reference.mode == "cached":
        data.cache_reference(load, of.denoiser_digest())
    return Prepared(config, family, data, validation)


@contextmanager
def _told_of_validation(config: Config) -> Iterator[None]:
    """Name the key that a source is the value of, in what is said within the block of a source by itself."""
    try:
        yield
    except UserError as error:
        if not isinstance(config.data.validation, str):
            raise
        raise UserError(str(error).replace("data.source", "data.validation")) from None


def reference_family(config: Config, family: Family) -> Family:
    """Return the family over the pipeline whose denoiser is the reference: that of the base, unless another is named.

    Raises UserError where the other's denoiser is of another shape.
    """
    if not config.reference.model:
        return family
    other = load_family(config.model.replace({"base": config.reference.model}))
    if other.denoiser_shape() != family.denoiser_shape():
        raise UserError(
            f"reference.model '{config.reference.model}' has a {family.denoiser_name} of another shape than model.base "
            f"'{config.model.base}': errors of the two cannot be compared"
        )
    return other


def reference_model(config: Config, family: Family, device: torch.device) -> Denoiser:
    """Return the reference's denoiser for a device, made ready as the policy is, so that both round alike.

    Where the policy's parameters stay on the host, so do its own: a layer comes to the device when it is its turn.
    """
    denoiser = family.denoiser(DTYPES[config.model.dtype])
    trainable.ready(denoiser, config.model, reference=True)
    if not config.parameters_on_host:
        return denoiser.to(device)
    by_parts(denoiser, device)
    return denoiser


def cache_root(config: Config) -> Path:
    """Return the folder of the caches, made now; UserError where it cannot be."""
    return made(expanded(config.data.cache_dir, "data.cache_dir"), "data.cache_dir")


def resolve_embedded(config: Config, rank: Rank) -> Config:
    """Replace the names of embedded bases by the paths of their pipelines and pairs, made now if need be."""
    if EMBEDDED.keys().isdisjoint((config.model.base, config.reference.model, config.data.source)):
        return config
    from fdpo_fast.digits.dataset import resolved

    if rank.index == 0:
        resolved(config)
    rank.barrier()
    return resolved(config)
