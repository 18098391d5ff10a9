"""The runs of a comparison: every divergence at every strength and seed, each a configuration of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fdpo_fast.compare.calibrate import drift, fit
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.evaluation import Kind
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Loss
from fdpo_fast.files import read_json, replacing

PAIRS = 256
"""The number of pairs that the calibration measures on."""


@dataclass(frozen=True)
class Point:
    """A run of the grid: a divergence at a strength, by a seed."""

    kind: Kind
    strength: float
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Return the name under which the run and its images lie."""
        kind = re.sub(r"[^\w.-]", "", self.kind.name.replace(", ", "-"))
        return f"{kind}-strength{self.strength:g}-seed{self.seed}"


def losses(config: Config, kinds: list[Kind]) -> list[Loss]:
    """Put each divergence into the configuration's loss, so that a mistake is found before anything runs."""
    variants = []
    for kind in kinds:
        try:
            variants.append(config.loss.replace({**kind.loss, "divergence": kind.divergence, "alpha": kind.alpha}))
        except UserError as error:
            raise UserError(f"compare.divergences '{kind.name}': {error}") from None
    return variants


def calibrated(config: Config, file: Path) -> list[Loss]:
    """Give each divergence the beta and ratio_scale that one trial of the configuration's own loss finds for it.

    ratio_scale is the same for all; beta gives all the same median gradient weight there (see `fdpo calibrate`). Kept
    in `file`, and read from it where it is there.
    """
    compare = config.comparison
    variants = losses(config, compare.divergences)
    fits = read_json(file) if file.is_file() else {}
    if any(kind.name not in fits for kind in compare.divergences):
        moved = drift(config, PAIRS, compare.trial_steps)
        for kind, loss in zip(compare.divergences, variants, strict=True):
            fits.setdefault(kind.name, fit(loss.link(), loss.margin, moved.delta, compare.median_u, compare.weight))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the runs, which are other processes
        with replacing(file) as partial:
            partial.write_text(json.dumps(fits, indent=2) + "\n")
    keys = ("beta", "ratio_scale")
    return [
        loss.replace({key: fits[kind.name][key] for key in keys})
        for kind, loss in zip(compare.divergences, variants, strict=True)
    ]


def points(config: Config, at_strength_one: list[Loss], folder: Path) -> Iterator[Point]:
    """Yield the grid seed by seed, so that a comparison that was stopped has whole curves."""
    compare = config.comparison
    for seed in compare.seeds:
        for kind, loss in zip(compare.divergences, at_strength_one, strict=True):
            for strength in compare.strengths:
                point = Point(kind, strength, seed, config)
                changes = {
                    "compare": None,
                    "loss": loss.replace({"beta": loss.beta / strength}),
                    "train.seed": seed,
                    "train.output_dir": str(folder / point.name),
                }
                yield replace(point, config=config.replace(changes))
