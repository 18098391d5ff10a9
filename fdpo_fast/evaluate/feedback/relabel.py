"""Judge the pairs of a source anew by scorers: `fdpo relabel --config ... --output labels.jsonl`.

What comes of it is a file for `data.labels`; the images stay where they are. Scores are kept in `data.cache_dir`, a few
pairs to a file: what is judged is not judged again, after a kill or with another combination.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fdpo_fast.cache.open import cache_root, resolve_embedded
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.decode import Unreadable, decode
from fdpo_fast.data.labels import Agreement, Label, Question, agreement, questions, read_labels, to_be_judged
from fdpo_fast.data.pairs import PairSource, Picture
from fdpo_fast.data.prefetch import ahead
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.data.reading import UnusableError
from fdpo_fast.distributed import Rank, single_process, start_processes, under_launcher
from fdpo_fast.evaluate.feedback.combine import Combination
from fdpo_fast.evaluate.feedback.parts import in_parts
from fdpo_fast.evaluate.judging import Tool, judged, judges
from fdpo_fast.evaluate.tables import table
from fdpo_fast.files import replacing
from fdpo_fast.models import quiet_libraries

ROWS = 64
"""Rows of the source to a file of scores: what a kill costs at most."""
LENGTHS = {"up to 10 words": 10, "11 to 25 words": 25, "over 25 words": None}
"""The bins of captions by which agreement is told, each with its largest number of words."""


@dataclass(frozen=True)
class Judged:
    """A pair with the scores of both of its images."""

    id: int
    place: str
    caption: str
    label: float
    """The source's own."""
    models: list[str] | None
    """What drew image 0 and image 1, where the source says it."""
    scores: dict[str, tuple[float, float]]
    """By scorer, of image 0 and image 1."""


def relabel(config: Config, output: Path) -> None:
    """Judge every pair of a configuration's source by `evaluate.scorers`, write their labels, and say how they agree.

    Raises UserError where the source has no images, a scorer fails, all images tie, or `output` holds another judge's
    labels. Collective over the launcher's ranks.
    """
    quiet_libraries()
    rank = start_processes() if under_launcher() else single_process()
    tools = judges(config.evaluate.scorers, rank.device)
    combination = Combination(config.pairs, tuple(judge.name for judge in tools))
    by = " + ".join(combination.judges)
    _check(output, by)
    config = resolve_embedded(config, rank)
    pairs, refused = judge(config, tools, rank)
    if not pairs:
        raise UserError(f"data.source '{config.data.source}' gives no pair with two images to look at")
    labels = labels_of(pairs, combination)
    if (labels == 0.5).all():
        raise combination.all_tie()
    if rank.index == 0:
        with replacing(output) as partial, partial.open("w", encoding="utf-8") as file:
            for pair, label in zip(pairs, labels.tolist(), strict=True):
                line = Label(pair.id, pair.place, pair.caption, label, by, {"scores": pair.scores})
                file.write(line.line())
    rank.barrier()
    rank.say("\n".join(words(pairs, labels.tolist(), refused)))
    rank.say(f"labels: {output}")


def _check(output: Path, by: str) -> None:
    """Raise UserError where a file has labels that are not by these judges."""
    others = {label.by for label in read_labels(output)} - {by} if output.is_file() else set()
    if others:
        raise UserError(f"{output} holds labels by {min(others)}: name another file by --output, or delete it")


def judge(config: Config, tools: list[Tool], rank: Rank) -> tuple[list[Judged], int]:
    """Score both images of every pair; returns the pairs, and how many have an image that does not decode. Collective.

    Raises UserError that names the scorer which fails.
    """
    data = to_be_judged(config.data)
    source = open_source(data)
    sizes = [2 * min(ROWS, len(source) - at) for at in range(0, len(source), ROWS)]
    found: dict[int, dict[str, Any]] = {}
    scores: dict[int, dict[str, tuple[float, float]]] = {}
    refused = 0
    for one in tools:
        of = {"judge": one.identity, "batch": config.evaluate.batch, "source": source.identity(), "rows": ROWS}
        parts = in_parts(cache_root(config), of, sizes, _scoring(config, one, source), one.name, rank)
        refused = 0
        for part in parts:
            refused += part["refused"]
            for pair, both in zip(part["pairs"], part["scores"], strict=True):
                found[pair["id"]] = pair
                scores.setdefault(pair["id"], {})[one.name] = (both[0], both[1])
    return [Judged(**pair, scores=scores[id]) for id, pair in found.items()], refused


def _scoring(config: Config, one: Tool, source: PairSource) -> Callable[[int], dict[str, Any]]:
    """Return what scores a part of the source's rows."""

    def images(asked: Question) -> tuple[Question, list[Image.Image] | None]:
        try:
            return asked, [_decoded(side, config.data.max_megapixels) for side in asked.images]
        except (UnusableError, Unreadable):
            return asked, None

    def part(number: int) -> dict[str, Any]:
        rows = source.read(number * ROWS, min((number + 1) * ROWS, len(source)))
        seen = list(ahead(images, questions(rows), config.data.workers))
        good = [(asked, both) for asked, both in seen if both is not None]
        both = [image for _, pair in good for image in pair]
        captions = [asked.caption for asked, _ in good for _ in range(2)]
        scores = judged(one, both, captions, config.evaluate.batch).reshape(-1, 2)
        keys = ("id", "place", "caption", "label", "models")
        pairs = [{key: getattr(asked, key) for key in keys} for asked, _ in good]
        return {"pairs": pairs, "scores": scores.tolist(), "refused": len(seen) - len(good)}

    return part


def _decoded(side: object, megapixels: float) -> Image.Image:
    if not isinstance(side, Picture):
        raise UserError("data.source has latents, and no images that a scorer could look at")
    return decode(side.read(), megapixels)


def labels_of(pairs: list[Judged], combination: Combination) -> np.ndarray:
    """Return the share in favour of image 0 of each pair, [n]."""
    scores = np.array([[pair.scores[name] for pair in pairs] for name in combination.judges])
    standardised = combination.standardised(scores)
    return combination.labels(standardised[:, :, 0], standardised[:, :, 1])


def words(pairs: list[Judged], labels: list[float], refused: int) -> Iterator[str]:
    """Yield the lines that say how far the labels agree with the source's own."""
    ties = sum(label == 0.5 for label in labels)
    yield f"{len(pairs)} pairs judged, {ties} of them ties; {refused} left out, as an image does not decode\n"
    groups = {"all": [True] * len(pairs)} | by_length(pairs) | by_model(pairs)
    rows = ((name, *_told(pairs, labels, within)) for name, within in groups.items() if any(within))
    yield from table(("agreement with the old labels", "pairs", "share", "Cohen's kappa"), rows, 3)
    if not any(pair.models for pair in pairs):
        yield "\nby model: the source does not say what drew its images"


def _told(pairs: list[Judged], labels: list[float], within: list[bool]) -> tuple[object, ...]:
    ours = [label for label, good in zip(labels, within, strict=True) if good]
    theirs = [pair.label for pair, good in zip(pairs, within, strict=True) if good]
    found: Agreement = agreement(ours, theirs)
    return found.pairs, f"{found.share:.1%}", "none" if found.kappa is None else f"{found.kappa:.3f}"


def by_length(pairs: list[Judged]) -> dict[str, list[bool]]:
    """Return which pairs have captions of which length."""
    counts = [len(pair.caption.split()) for pair in pairs]
    groups, least = {}, 0
    for name, most in LENGTHS.items():
        groups[name] = [least <= count and (most is None or count <= most) for count in counts]
        least = (most or 0) + 1
    return groups


def by_model(pairs: list[Judged]) -> dict[str, list[bool]]:
    """Return which pairs have an image by which model, the most frequent models first."""
    models = [set(pair.models or ()) for pair in pairs]
    names = sorted(set().union(*models), key=lambda name: (-sum(name in own for own in models), name))
    return {f"an image by {name}": [name in own for own in models] for name in names}
