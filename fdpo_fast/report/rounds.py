"""The page over all rounds of `fdpo rounds`, and their figures as a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fdpo_fast.compare.rounds import Made
from fdpo_fast.config.evaluation import Rounds
from fdpo_fast.config.run import Config
from fdpo_fast.evaluate import statistics
from fdpo_fast.evaluate.gallery import PICTURES, ROWS
from fdpo_fast.evaluate.score import Report
from fdpo_fast.evaluate.statistics import Estimate
from fdpo_fast.files import replacing
from fdpo_fast.report import theme
from fdpo_fast.report.pages import Part, Samples, Table, short, strip, write
from fdpo_fast.report.pictures import Panel, Picture

PAGE = "index.html"


def write_rounds(config: Config, made: Made, folder: Path) -> Path:
    """Write `index.html` and `evaluation.json` into the folder of the rounds; returns the page."""
    with replacing(folder / "evaluation.json") as partial:
        drift = {name: found.figures() for name, found in made.drift.items()}
        partial.write_text(json.dumps({**made.report.figures(), "drift": drift}, indent=2) + "\n")
    write(folder / PAGE, "Rounds", parts(config, made))
    return folder / PAGE


DRIFT = (
    "Drift is minus the mean log-ratio to the base on images that the base has drawn: it estimates KL(base || policy), "
    "with intervals by Student's t."
)
WITHOUT = (
    "The drift from the base is not measured: it takes at least two images a caption (`evaluate.images_per_prompt`)."
)


def counted(number: int, thing: str) -> str:
    """Write a number of things, in the plural where there is not one."""
    return f"{number} {thing}{'s' * (number != 1)}"


def _kept(settings: Rounds) -> str:
    return f", and on those of up to {counted(settings.keep_pairs, 'round')} before" if settings.keep_pairs else ""


def parts(config: Config, made: Made) -> Iterator[Part]:
    """Yield the parts of the page."""
    names = [model.model for model in made.galleries]
    report = made.report
    assert config.rounds is not None
    yield Part(
        "What came of the rounds",
        (
            f"Each round is {counted(config.train.max_steps, 'step')} on pairs that the policy of the round before has "
            f"drawn{_kept(config.rounds)}; its reference is the "
            f"{'policy before' if config.rounds.reference == 'previous' else 'base'}. Means over "
            f"{counted(report.captions, 'caption')} with {counted(report.images_per_prompt, 'image')} each, from the "
            f"same noise for all; intervals of 95 % by a bootstrap over {report.resample}, of diversity over captions.",
            DRIFT if made.drift else WITHOUT,
            *verdict(config.rounds, report),
        ),
        picture=curves(made),
        file="rounds.png",
        table=Table(("measure", *names), tuple(_rows(made, names)), "l" + "r" * len(names)),
    )
    if report.failures:
        yield Part("What could not be measured", tuple(report.failures))
    base = made.galleries[0]
    captions, pictures = base.prompts[:ROWS], min(PICTURES, base.images_per_prompt)
    yield Part(
        "Samples",
        (
            f"{len(captions)} of {counted(len(base.prompts), 'caption')}, {pictures} of "
            f"{counted(base.images_per_prompt, 'image')} each, from the same noise.",
        ),
        samples=tuple(
            Samples(short(caption), tuple(strip(one.model, one.images(row)[:PICTURES]) for one in made.galleries))
            for row, caption in enumerate(captions)
        ),
    )
    links = (("runs", "runs"), ("pairs", "pairs"), ("images", "all images"))
    yield Part("Files", links=(*links, ("evaluation.json", "figures"), ("logs", "logs")))


def verdict(settings: Rounds, report: Report) -> Iterator[str]:
    """Say what each round has changed of the scores, image by image, and where those that do not rank last rise."""
    names = list(next(iter(report.scores.values()), {}))
    risen = {}
    for before, after in pairwise(names):
        gaps = {
            name: statistics.mean(scores[after] - scores[before], report.resample)
            for name, scores in report.scores.items()
        }
        told = "; ".join(f"{short(name)} {_way(gap)}: {_signed(gap)}" for name, gap in gaps.items())
        yield f"{after} beside {before}, image by image: {told}."
        risen[after] = [name for name, gap in gaps.items() if gap.low > 0]
    ranks = {scorer.name for scorer in settings.scorers}
    if not report.scores.keys() - ranks:
        yield (
            "Nothing judges the rounds but what ranks their pairs, which a policy learns to please: add another scorer "
            "to `evaluate.scorers`."
        )
        return
    last = next((name for name in reversed(names[1:]) if set(risen[name]) - ranks), None)
    if last is None:
        yield "Of the scorers that rank no pairs none rises in any round: what is gained is what ranks alone."
    elif last != names[-1]:
        yield f"Behind {last} none rises but those that rank the pairs: take it, unless they are all that counts."


def _way(gap: Estimate) -> str:
    return "rises" if gap.low > 0 else "falls" if gap.high < 0 else "cannot be told to have changed"


def _signed(gap: Estimate) -> str:
    return f"{gap.value:+.4g} [{gap.low:+.4g}, {gap.high:+.4g}]"


def _rows(made: Made, names: list[str]) -> Iterator[tuple[str, ...]]:
    summaries = made.report.summaries
    for name, found in summaries["scores"].items():
        yield short(name), *(str(found[own].mean) for own in names)
        yield f"{short(name)}: win rate against the base", *(str(found[own].win_rate or "") for own in names)
    for name, found in summaries["diversity"].items():
        yield f"diversity: {short(name)}", *(str(found[own].mean) for own in names)
    if made.drift:
        yield "drift from the base", *(str(made.drift[own]) for own in names)


def curves(made: Made) -> Picture:
    """Draw each figure over the rounds, the base at 0, with bars of its interval."""
    names = [model.model for model in made.galleries]
    panels = []
    for kind, by_name in made.report.summaries.items():
        for name, found in by_name.items():
            title = ("diversity: " * (kind == "diversity")) + short(name)
            panels.append(Panel(partial(_curve, [found[own].mean for own in names]), title, "more is better"))
    if made.drift:
        drift = [made.drift[own] for own in names]
        panels.append(Panel(partial(_curve, drift), "drift from the base", "minus the mean log-ratio"))
    return Picture(tuple(panels))


def _curve(estimates: list[Estimate], axes: Axes) -> None:
    values = np.array([each.value for each in estimates])
    ends = np.abs(np.nan_to_num([[each.value - each.low, each.high - each.value] for each in estimates]))
    style: dict[str, Any] = theme.series(0)
    axes.errorbar(range(len(values)), values, ends.T, elinewidth=0.7, **style)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
