"""Validation: what the policy makes of pairs that are held out, on draws that are the same at every step and run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from fdpo_fast.cache.dataset import TrainingSet
from fdpo_fast.config.run import Config
from fdpo_fast.distributed import Rank
from fdpo_fast.loss.function import evaluate
from fdpo_fast.loss.options import LossOptions
from fdpo_fast.models import prediction
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.prediction import as_in_training
from fdpo_fast.ops.pairs import to_pairs
from fdpo_fast.training.margins import Steepness
from fdpo_fast.training.records import read_metrics

FIGURES = ("loss", "accuracy", "margin", "delta_w", "delta_l", "steep")
"""What is told of the held-out pairs, each by its mean and the half width of its 95 % interval."""
Choice = Literal["validation_accuracy", "validation_margin", "validation_loss"]
_NORMAL = 1.959963984540054
"""The quantile of a normal distribution that 2.5 % lie above."""


class Validation:
    """The held-out pairs of a run, if there are any, on all of their draws; a pass is shared out over the ranks.

    Timesteps follow the same density as in training. Reference errors come from the cache, so a pass costs the
    policy's forward alone, once for each pair and draw.

    before: the records of the steps that are done, as `validated` reads them.
    """

    def __init__(
        self, data: TrainingSet | None, config: Config, options: LossOptions, rank: Rank, before: list[dict]
    ) -> None:
        self.data, self.options, self.rank, self.settings = data, options, rank, config.train
        self.steepness = Steepness(options.link)
        self.bins = config.log.timestep_bins
        self.best = Best(config.train.keep_best, config.train.patience, before)

    def due(self, step: int) -> bool:
        """Say whether the pairs are looked at behind a step; behind the last one they are."""
        every, last = self.settings.validate_every, self.settings.max_steps
        return self.data is not None and ((step + 1) % every == 0 or step + 1 == last)

    def found_best(self, step: int) -> bool:
        """Say whether a step is the best so far, and is to be kept."""
        return self.settings.keep_best is not None and self.best.step == step

    def kept(self) -> int | None:
        """Return how many steps are behind the checkpoint that is to be kept as the best."""
        return None if self.settings.keep_best is None or self.best.step is None else self.best.step + 1

    def look(self, step: int, denoiser: Denoiser) -> dict[str, float | list]:
        """Return what is to be added to the record of a step at which it is due. Collective."""
        assert self.data is not None
        found = self.figures(self.data, denoiser)
        self.best.add({"step": step, **found})
        return found

    def _batches(self, data: TrainingSet) -> Iterator[tuple[Tensor, int, bool]]:
        """Yield this rank's (positions, visit, whether they count): as many on every rank, the last ones repeated."""
        visits = range(self.settings.validation_visits)
        every = [(positions, visit) for positions in data.by_shape() for visit in visits]
        for first in range(0, len(every), self.rank.count):
            at = first + self.rank.index
            yield *every[min(at, len(every) - 1)], at < len(every)

    @torch.no_grad()
    def figures(self, data: TrainingSet, denoiser: Denoiser) -> dict[str, float | list]:
        """Return the figures of the policy by name, equal on all ranks. Collective.

        Intervals are over pairs, whose draws are averaged before: 1.96 standard errors on either side of the mean.
        """
        began = time.perf_counter()
        shape = len(data), self.settings.validation_visits, len(FIGURES) + 1
        found = torch.zeros(shape, dtype=torch.float64, device=data.device)
        for positions, visit, counts in self._batches(data):
            filled = data.filled(positions)
            batch = data.batch(filled, torch.full_like(filled, visit))
            assert batch.ref_error is not None
            with as_in_training():
                pred, target, fed = prediction.predict(data.family, denoiser, batch)
            loss, stats = evaluate(self.options, pred.detach(), batch.ref_error, target, None)
            delta_w, delta_l = to_pairs(torch.cat([stats.log_ratio_w, stats.log_ratio_l])).T / -self.options.ratio_scale
            accuracy = (stats.margin > 0).double() + 0.5 * (stats.margin == 0).double()
            steep = self.steepness(stats.log_ratio_w, stats.log_ratio_l)
            values = (loss, accuracy, stats.margin, delta_w, delta_l, steep, fed)
            if counts:
                rows = torch.stack([value.double() for value in values], dim=1)[: len(positions)]
                found[positions.to(found.device), visit] = rows
        dist.all_reduce(found)
        told = _means(found[..., :-1].mean(1), "validation/")
        told |= {"validation/pairs": len(data), "validation/seconds": time.perf_counter() - began}
        return {**told, "validation_bins": self._by_noise(found.flatten(0, 1), data.family.steps)}

    def _by_noise(self, rows: Tensor, steps: int) -> list[dict]:
        """Return the means of draws, [n, figures and the timestep fed], by the noise level, in training's bins."""
        of_bin = (rows[:, -1] * self.bins // steps).long().clamp(max=self.bins - 1)
        edges = [steps * i // self.bins for i in range(self.bins + 1)]
        return [
            {"timesteps": edges[i : i + 2], "pairs": len(own), **dict(zip(FIGURES, own.mean(0).tolist(), strict=True))}
            for i in range(self.bins)
            if len(own := rows[of_bin == i, :-1])
        ]


def _means(values: Tensor, prefix: str) -> dict[str, float]:
    """Return the means of [pairs, figures] by name, and the half widths of their intervals."""
    pairs = len(values)
    half = _NORMAL * values.std(0, correction=1 if pairs > 1 else 0) / pairs**0.5
    told = dict(zip(FIGURES, values.mean(0).tolist(), strict=True))
    widths = dict(zip(FIGURES, half.tolist(), strict=True))
    return {f"{prefix}{name}": value for name, value in told.items()} | {
        f"{prefix}{name}_half_width": value for name, value in widths.items()
    }


def validated(folder: Path, steps: int) -> list[dict]:
    """Read the records of a run's first steps at which held-out pairs were looked at."""
    return [record for record in read_metrics(folder, steps).records if "validation/accuracy" in record]


class Best:
    """The best step so far by a figure of validation, and how many validations there have been since.

    records: of the steps that are done, which a resumed run has been told of before.
    """

    def __init__(self, choice: Choice | None, patience: int | None, records: Iterable[dict]) -> None:
        self.name = (choice or "validation_accuracy").replace("_", "/")
        self.patience, self.since = patience, 0
        self.value: float | None = None
        self.step: int | None = None
        for record in records:
            self.add(record)

    def add(self, record: dict) -> bool:
        """Take note of a record; say whether it is of the best step so far: the first of equal ones is."""
        value = record.get(self.name)
        if value is None:
            return False
        signed = -value if self.name.endswith("loss") else value
        better = signed == signed and (self.value is None or signed > self.value)
        self.since = 0 if better else self.since + 1
        if better:
            self.value, self.step = signed, record["step"]
        return better

    def over(self) -> str | None:
        """Say in a sentence that patience has run out; None where it has not."""
        if self.patience is None or self.since < self.patience:
            return None
        return f"{self.since} validations without a better one: the best is behind step {(self.step or 0) + 1}"
