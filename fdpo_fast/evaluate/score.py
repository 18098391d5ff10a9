"""Score what `fdpo sample` has drawn: `fdpo evaluate --config ...`.

Alignment by `evaluate.scorers`, diversity within a caption by `evaluate.diversity`; means, medians and win rates
against the base at equal noise, with bootstrap intervals. Scores stay beside the images: a second run
computes what is missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.evaluation import Evaluate, Measure
from fdpo_fast.config.run import Config
from fdpo_fast.distributed import single_process
from fdpo_fast.evaluate import gallery, statistics
from fdpo_fast.evaluate.diversity import MEASURES
from fdpo_fast.evaluate.gallery import Gallery
from fdpo_fast.evaluate.judging import Tool, scored, tool
from fdpo_fast.evaluate.plugins import fault, named
from fdpo_fast.evaluate.policies import BASE
from fdpo_fast.evaluate.sample import seed_of
from fdpo_fast.evaluate.scorers import SCORERS
from fdpo_fast.evaluate.tables import table
from fdpo_fast.files import clear_partial, digest, read_json, replacing, stamp
from fdpo_fast.models import quiet_libraries
from fdpo_fast.progress import progress


def evaluate(config: Config, images: Path | None) -> None:
    """Score all models of a folder, by default `<train.output_dir>/evaluation`.

    Ends with status 1, after everything else is done, where a measure failed.
    """
    quiet_libraries()
    check(config.evaluate)
    folder = (images or Path(config.train.output_dir) / "evaluation").expanduser()
    galleries = gallery.galleries(folder)
    clear_partial(folder)
    report = measure(config, galleries)
    with replacing(folder / "evaluation.json") as partial:
        partial.write_text(json.dumps(report.figures(), indent=2) + "\n")
    print("\n".join(report.markdown()))
    print(f"\nfigures: {folder / 'evaluation.json'}; scores of every image: {folder}/<model>/scores")
    if report.failures:
        sys.exit("\n".join(f"fdpo evaluate: {failure}" for failure in report.failures))


def check(settings: Evaluate) -> None:
    """Raise UserError where a scorer, or a measure of diversity, is none that is known and no function to be found."""
    mistakes = []
    for key, measures, ours in _kinds(settings):
        for entry in measures:
            try:
                named(entry.name, ours, key, entry.options)
            except UserError as error:
                mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))


def check_images(settings: Evaluate) -> None:
    """Raise UserError where fewer images of a caption are to be drawn than its measures of diversity take."""
    if settings.diversity and settings.images_per_prompt < 2:
        raise UserError(ALONE)


ALONE = "diversity takes at least two images a caption: raise evaluate.images_per_prompt"


def _kinds(settings: Evaluate) -> tuple[tuple[str, list[Measure], dict[str, Any]], ...]:
    return (
        ("evaluate.scorers", settings.scorers, SCORERS),
        ("evaluate.diversity", settings.diversity, MEASURES),
    )


class Summary(NamedTuple):
    """The estimates of a measure for a model."""

    mean: statistics.Estimate
    median: statistics.Estimate
    win_rate: statistics.Estimate | None = None
    """How often an image wins against the base's; diversity has no such figure."""

    def figures(self) -> dict[str, Any]:
        """Return the estimates by name, for JSON."""
        return {key: value and value.figures() for key, value in self._asdict().items()}


@dataclass
class Report:
    """The scores and diversities of several models over the same captions."""

    images_per_prompt: int
    captions: int
    seed: int
    resample: str
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Scores [captions, images] by the measure's name and model."""
    diversity: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Diversities [captions] by the measure's name and model."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """The checkpoint in words by the measure's name."""
    failures: list[str] = field(default_factory=list)

    @cached_property
    def summaries(self) -> dict[str, dict[str, dict[str, Summary]]]:
        """Return the summaries by "scores" or "diversity", then by measure and model."""
        return {
            "scores": {
                name: {
                    model: Summary(
                        statistics.mean(values, self.resample),
                        statistics.median(values, self.resample),
                        self._wins(values, by_model.get(BASE)) if model != BASE else None,
                    )
                    for model, values in by_model.items()
                }
                for name, by_model in self.scores.items()
            },
            "diversity": {
                name: {
                    model: Summary(
                        statistics.mean(values[:, None], "captions"), statistics.median(values[:, None], "captions")
                    )
                    for model, values in by_model.items()
                }
                for name, by_model in self.diversity.items()
            },
        }

    def _wins(self, values: np.ndarray, base: np.ndarray | None) -> statistics.Estimate | None:
        return None if base is None else statistics.mean(statistics.wins(values, base), self.resample).within(0.0, 1.0)

    def figures(self) -> dict[str, Any]:
        """Return everything but the single scores, for JSON."""
        return {
            "captions": self.captions,
            "images_per_prompt": self.images_per_prompt,
            "seed": self.seed,
            "resample": self.resample,
            "checkpoints": self.checkpoints,
            **{
                kind: {
                    name: {model: summary.figures() for model, summary in by_model.items()}
                    for name, by_model in by_name.items()
                }
                for kind, by_name in self.summaries.items()
            },
            "failures": self.failures,
        }

    def markdown(self) -> Iterator[str]:
        """Yield the lines of a table in Markdown; its intervals are of 95 %."""
        yield (
            f"{self.captions} captions, {self.images_per_prompt} images each, seed {self.seed}; intervals of 95 % by a "
            f"bootstrap over {self.resample}, of diversity over captions.\n"
        )
        yield from table(("measure", "model", "mean", "median", "win rate against the base"), self._rows())

    def _rows(self) -> Iterator[tuple[object, ...]]:
        for kind, by_name in self.summaries.items():
            for name, by_model in by_name.items():
                title = f"{'diversity: ' * (kind == 'diversity')}{name} ({self.checkpoints[name]})"
                for model, summary in by_model.items():
                    yield title, model, summary.mean, summary.median, summary.win_rate or ""


def measure(config: Config, galleries: list[Gallery]) -> Report:
    """Score the models; a measure that fails is noted, and the others go on.

    Raises UserError where the models were not drawn alike, or with another seed than the configuration's.
    """
    first, settings = galleries[0], config.evaluate
    if first.seeds[0][0] != seed_of(settings.seed, first.prompts[0], 0):
        raise UserError(f"{first.folder} was not drawn with evaluate.seed {settings.seed}: set the one it has")
    for other in galleries[1:]:
        if (other.prompts, other.seeds) != (first.prompts, first.seeds):
            raise UserError(f"{other.folder} and {first.folder} hold images of other captions or seeds: draw them anew")
    for sampled in galleries:
        clear_partial(sampled.folder / "scores")
    report = Report(first.images_per_prompt, len(first.prompts), settings.seed, settings.resample)
    device = single_process().device
    taken = ((_scores, report.scores), (_spreads, report.diversity))
    for (kind, measures, ours), (values_of, into) in zip(_kinds(settings), taken, strict=True):
        for entry in measures:
            try:
                found = tool(entry, kind, ours, device)
                values = partial(values_of, found, settings.batch)
                into[entry.name] = {
                    sampled.model: _kept(sampled, kind, found.identity, values) for sampled in galleries
                }
                report.checkpoints[entry.name] = found.about
            except Exception as error:  # from the user's function, or any library: the other measures go on
                report.failures.append(f"{kind} '{entry.name}': {fault(error, entry.name)}")
    return report


def _scores(found: Tool, batch: int, sampled: Gallery) -> np.ndarray:
    """Score every image of a gallery: [captions, images]."""
    judge, rows = found.judge, []
    for number, prompt in enumerate(progress(sampled.prompts, desc=f"{found.name}, {sampled.model}", leave=False)):
        images = sampled.images(number)
        rows.append(scored(judge, images, [prompt] * len(images), batch))
    return np.stack(rows)


def _spreads(found: Tool, batch: int, sampled: Gallery) -> np.ndarray:
    """Measure the diversity of every caption of a gallery: [captions]."""
    if sampled.images_per_prompt < 2:
        raise UserError(ALONE)
    spread, numbers = found.judge, range(len(sampled.prompts))
    bar = progress(numbers, desc=f"{found.name}, {sampled.model}", leave=False)
    return np.array([float(spread(sampled.images(number))) for number in bar])


def _kept(sampled: Gallery, kind: str, key: dict, values_of: Callable[[Gallery], np.ndarray]) -> np.ndarray:
    """Return a model's figures, read from beside its images where they are of the same images and measure."""
    key = {**key, "images": digest([sampled.seeds, [[stamp(path) for path in row] for row in sampled.files]])}
    name = digest([key["measure"], key["checkpoint"]])[:12]
    path = sampled.folder / "scores" / f"{kind.rpartition('.')[2]}-{name}.json"
    if path.is_file() and (before := read_json(path))["of"] == key:
        return np.array(before["values"], dtype=np.float64)
    values = values_of(sampled)
    if not np.isfinite(values).all():
        raise UserError(f"gave figures for '{sampled.model}' that are not finite")
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps({"of": key, "values": values.tolist()}))
    return values
