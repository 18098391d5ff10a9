"""Labels of pairs in a file of their own: its lines, how far judges agree, and the source that applies them.

A file is JSON Lines, a judgement each: `{"id": 24, "place": "row 12", "caption": "...", "label": 1.0, "by": "alice"}`
and whatever else a judge wrote down. Images are not in it, and a source's own files stay as they are.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import (
    UNLABELLED,
    EmbeddedSource,
    LeftOut,
    Pair,
    PairSource,
    Picture,
    Rejected,
    Rules,
    Side,
    brought_by,
    compared,
    short,
    why_no_text,
)
from fdpo_fast.data.reading import UnusableError, printable, read_file, text
from fdpo_fast.files import digest, expanded

AS_JUDGED = Rules(ties="half", votes="conservative")
"""The rules under which a source tells of each pair, ties included, how surely it prefers which side."""


@dataclass(frozen=True)
class Label:
    """What a judge said of a pair.

    `label` is the share in favour of image 0, in [0, 1], 0.5 a tie; None where the judge skipped the pair. `caption` is
    that of the pair, by which a file of another source is known; `place` is for people.
    """

    id: int
    place: str
    caption: str
    label: float | None
    by: str
    more: dict[str, Any] = field(default_factory=dict)
    """What else the judge wrote down, as scores."""

    def line(self) -> str:
        """Return the line of a file that says it, with its end."""
        named = {"id": self.id, "place": self.place, "caption": self.caption, "label": self.label, "by": self.by}
        return json.dumps(named | self.more, ensure_ascii=False) + "\n"


class Question(NamedTuple):
    """A pair as it is put to a judge, whatever its label is."""

    id: int
    row: int
    place: str
    caption: str
    images: tuple[Side, Side]
    """Image 0 and image 1: as the source lists them, or, where it has no order, its preferred one first."""
    label: float
    """The source's own label: the share in favour of image 0."""
    ordered: bool
    """Whether the source lists its images in an order that does not follow from the label."""
    text: int
    models: tuple[str, str] | None
    """What drew image 0 and image 1, where the source says it."""


def question(pair: Pair) -> Question | None:
    """Return what a pair, read `AS_JUDGED`, asks; None for the mirrored half of another one."""
    if pair.id % 2:
        return None
    images, label, models = (pair.preferred, pair.dispreferred), pair.weight, pair.models
    if pair.first is False:
        images, label, models = images[::-1], 1 - label, models and models[::-1]
    ordered = pair.first is not None or pair.weight == 0.5
    return Question(pair.id, pair.row, pair.place, pair.caption, images, label, ordered, pair.text, models)


def questions(items: Iterable[Pair | Rejected]) -> Iterator[Question]:
    """Yield what the pairs of a source, read `AS_JUDGED`, ask; rows that give no pair are passed over."""
    for item in items:
        if isinstance(item, Pair) and (asked := question(item)):
            yield asked


def to_be_judged(data: Data) -> Data:
    """Return the section of a source that is read `AS_JUDGED`, without the labels of a file."""
    rules = {"ties": AS_JUDGED.ties, "votes": AS_JUDGED.votes}
    return data.replace({"labels": None, "unlabelled": "keep", **rules})


def read_labels(path: Path) -> list[Label]:
    """Read a file of labels.

    Raises UserError, with the number of the line, where one is no label, a judge says something of a pair twice, or a
    pair has two captions; and where the file cannot be read, or holds no line.
    """
    name = printable(str(path))
    if not path.is_file():
        raise UserError(f"the file of labels {name} does not exist")
    try:
        content = text(read_file(path, name))
    except UnusableError as error:
        raise UserError(f"the file of labels {name} cannot be read: {error}") from None
    labels: list[Label] = []
    said: dict[tuple[int, str], int] = {}
    captions: dict[int, tuple[str, int]] = {}
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            label = _label(line)
        except ValueError as error:
            raise UserError(f"the file of labels {name} is broken in line {number}: {error}") from None
        first = said.setdefault((label.id, label.by), number)
        if first != number:
            raise UserError(
                f"the file of labels {name} has two labels of pair {label.id} by {short(label.by)}, in the lines "
                f"{first} and {number}: remove one"
            )
        caption, first = captions.setdefault(label.id, (label.caption, number))
        if caption != label.caption:
            raise UserError(
                f"the file of labels {name} has two captions of pair {label.id}, in the lines {first} and {number}: "
                "they are labels of two sources"
            )
        labels.append(label)
    if not labels:
        raise UserError(f"the file of labels {name} holds no label")
    return labels


def _label(line: str) -> Label:
    """Read a line; ValueError, with what was found, where it is no label."""
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError(f"found {short(raw)} in place of an object")
    if missing := [key for key in ("id", "caption", "label", "by") if key not in raw]:
        raise ValueError(f"it has no '{missing[0]}'")
    id, place, caption, label, by = (raw.pop(key, "") for key in ("id", "place", "caption", "label", "by"))
    if type(id) is not int or id < 0 or id % 2:
        raise ValueError(f"'id' is {short(id)}, and is to be that of a pair, a whole even number")
    if label is not None and (type(label) not in (int, float) or not 0 <= label <= 1):
        raise ValueError(f"'label' is {short(label)}, and is to be a number from 0 to 1, or null")
    if why := why_no_text(caption):
        raise ValueError(why)
    if not isinstance(by, str) or not by.strip():
        raise ValueError(f"'by' is {short(by)}, and is to name who judged")
    return Label(id, place if isinstance(place, str) else short(place), caption, label, by, raw)


class Vote(NamedTuple):
    """What all judges together say of a pair."""

    label: float
    """The mean share in favour of image 0."""
    caption: str


def votes(labels: Iterable[Label]) -> dict[int, Vote]:
    """Return the mean label of each pair, by its id; those that every judge skipped have none."""
    said: dict[int, list[float]] = defaultdict(list)
    captions: dict[int, str] = {}
    for label in labels:
        if label.label is not None:
            said[label.id].append(label.label)
            captions[label.id] = label.caption
    return {id: Vote(sum(shares) / len(shares), captions[id]) for id, shares in said.items()}


class Labelled:
    """A source whose pairs are labelled by a file; those that it says nothing of keep their own label, or are dropped.

    `source` is read `AS_JUDGED`. Reading raises UserError where a pair's caption is not that of its labels.
    """

    def __init__(self, source: PairSource, file: Path, rules: Rules, drop: bool) -> None:
        self.source, self.file, self.rules, self.drop = source, file, rules, drop
        self.votes = votes(read_labels(file))
        self.embedded, self.split = brought_by(source), source.split

    def __len__(self) -> int:
        return len(self.source)

    def identity(self) -> dict:
        """Return what is done with ties, votes and pairs without a label, the labels' digest, and the source's own."""
        labels = sorted((id, vote.label) for id, vote in self.votes.items())
        rules = {"ties": self.rules.ties, "votes": self.rules.votes, "drop": self.drop}
        return {"labels": digest(labels), **rules, "of": self.source.identity()}

    def extent(self) -> tuple[int, int]:
        """Return how many pairs and images the source has at most."""
        return self.source.extent()

    def left_out(self) -> list[LeftOut]:
        """List the files that the source leaves out."""
        return self.source.left_out()

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop) as they are labelled; their ids stay those of the source."""
        for item in self.source.read(start, stop):
            if isinstance(item, Rejected):
                yield item
            elif asked := question(item):
                yield from self._answered(asked)

    def _answered(self, asked: Question) -> Iterator[Pair | Rejected]:
        vote = self.votes.get(asked.id)
        if vote is None and self.drop:
            pictures = tuple(side for side in asked.images if isinstance(side, Picture))
            yield Rejected(asked.place, UNLABELLED, asked.row, pictures)
            return
        if vote is not None and vote.caption != asked.caption:
            raise UserError(
                f"data.labels {printable(str(self.file))} is of another source: pair {asked.id} ({asked.place}) has "
                f"the caption {short(asked.caption)} here and {short(vote.caption)} there"
            )
        share = asked.label if vote is None else vote.label
        labels, models = (share, 1 - share), asked.models or (None, None)
        for pair in compared(
            asked.row, asked.id, asked.place, asked.caption, asked.images, labels, self.rules, models=models
        ):
            if isinstance(pair, Pair):
                pair = replace(pair, text=asked.text, first=pair.first if asked.ordered else None)
            yield pair

    def embeddings(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, np.ndarray]]]:
        """Yield row, caption and embeddings of the source's rows [start, stop)."""
        if isinstance(self.source, EmbeddedSource):
            yield from self.source.embeddings(start, stop)


def labelled(source: PairSource, data: Data, rules: Rules) -> PairSource:
    """Return a source, read `AS_JUDGED`, with the labels of `data.labels`."""
    assert data.labels is not None
    return Labelled(source, expanded(data.labels, "data.labels"), rules, data.unlabelled == "drop")


class Agreement(NamedTuple):
    """How far two judges agree on which image is better, or that neither is."""

    pairs: int
    share: float
    """The share of the pairs of which both say the same."""
    kappa: float | None
    """Cohen's kappa (1960): 0 where they agree as by chance, 1 where always; None where chance agrees always, too."""


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> Agreement:
    """Compare the labels of two judges, shares in favour of image 0: above 0.5 is image 0, below image 1, 0.5 a tie.

    kappa = (p_o - p_e) / (1 - p_e) with p_o the share of equal answers, p_e that of judges who answer independently of
    the pair, each as often as it does. Raises ValueError without a pair.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"two judges of the same pairs are compared, got {len(ours)} and {len(theirs)} labels")
    one, other = ([(label > 0.5) - (label < 0.5) for label in labels] for labels in (ours, theirs))
    count = len(one)
    same = sum(a == b for a, b in zip(one, other, strict=True)) / count
    often, as_often = Counter(one), Counter(other)
    chance = sum(often[answer] * as_often[answer] for answer in often) / count**2
    return Agreement(count, same, None if chance == 1 else (same - chance) / (1 - chance))
