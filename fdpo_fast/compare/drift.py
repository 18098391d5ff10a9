"""How far models are from the base that their rounds began with, by the errors on images that the base has drawn."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from fdpo_fast.cache.build import Builder
from fdpo_fast.cache.dataset import TrainingSet
from fdpo_fast.cache.open import cache_root, reference_family, reference_model, resolve_embedded
from fdpo_fast.compare.paired import interval
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import VISITS
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.distributed import single_process
from fdpo_fast.evaluate.feedback.make import READ_AS
from fdpo_fast.evaluate.gallery import Gallery
from fdpo_fast.evaluate.policies import BASE
from fdpo_fast.evaluate.statistics import Estimate
from fdpo_fast.files import replacing
from fdpo_fast.models import load_family, quiet_libraries


def drift(config: Config, base: Gallery, policies: dict[str, Path]) -> dict[str, Estimate]:
    """Return the drift of each policy, by the folders of their pipelines, and the base's own, which is 0.

    It is -E[u] = ratio_scale E[error - error of the base] over images of the base on `VISITS` draws each, which
    estimates KL(base || policy) in units of u; intervals of 95 % are over images, two at a time. The errors are cached
    as those of references are. Empty where the base has drawn a single image of a caption: two share a draw.
    """
    if base.images_per_prompt < 2:
        return {}
    quiet_libraries()
    rank = single_process()
    config = resolve_embedded(config.replace(_changes(paired(base))), rank)
    family = load_family(config.model)
    data = TrainingSet(config, family, open_source(config.data), Builder(cache_root(config), rank))
    errors: dict[str, np.ndarray] = {}
    for name, folder in {BASE: None, **policies}.items():
        own = config.replace({"reference.model": folder and str(folder)})
        of = reference_family(own, family)
        data.cache_reference(partial(reference_model, own, of, rank.device), of.denoiser_digest())
        assert data.reference is not None
        errors[name] = data.reference.mean((1, 2)).numpy()
    return {name: interval(config.loss.ratio_scale * (own - errors[BASE])) for name, own in errors.items()}


def paired(base: Gallery) -> Path:
    """Write a source of pairs of a gallery's images, every two neighbours of a caption; which is first is no matter."""
    file = base.folder.parent / f"{base.model}.jsonl"
    lines = []
    for caption, files in zip(base.prompts, base.files, strict=True):
        names = [str(path.relative_to(file.parent)) for path in files]
        for two in zip(names[::2], names[1::2], strict=False):
            record = {"images": two, "caption": caption, "rank": [1, 2]}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    with replacing(file) as partial_file:
        partial_file.write_text("".join(lines), encoding="utf-8")
    return file


def _changes(source: Path) -> dict[str, object]:
    """Return what a configuration of training has otherwise, to look at a source with several references."""
    return READ_AS | {
        "data.source": str(source),
        "data.validation": None,
        "train.validate_every": 0,
        "train.keep_best": None,
        "train.patience": None,
        "reference.mode": "cached",
        "reference.model": None,
        "reference.visits": VISITS,
    }
