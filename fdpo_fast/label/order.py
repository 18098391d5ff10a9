"""In which order pairs are asked, and which image stands on which side: functions of a seed, the pair, the person."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.labels import Label
from fdpo_fast.data.pairs import number, short
from fdpo_fast.label.questions import Asked, Questions

Order: TypeAlias = Callable[[Questions, Sequence[Label]], list[Asked]]
"""What brings pairs into an order; it may look at what the file of labels says of them already."""
Scores: TypeAlias = Mapping[int, Mapping[str, tuple[float, float]]]
"""By pair's id and scorer, the scores of image 0 and image 1."""


def number_of(seed: int, what: str, id: int) -> int:
    """Return a number of 64 bits that looks random, always the same for a seed, a word and a pair's id."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{id}/{what}".encode()).digest()[:8], "big")


def left_image(seed: int, by: str, id: int) -> int:
    """Draw which image of a pair, 0 or 1, a person finds on the left."""
    return number_of(seed, f"left of {by}", id) & 1


def at_random(questions: Iterable[Asked], seed: int) -> list[Asked]:
    """Bring pairs into a random order.

    It is the same for every person, so that people who each judge a part judge the same part; and a pair that comes or
    goes does not move others.
    """
    return sorted(questions, key=lambda question: number_of(seed, "order", question.id))


def first_of(questions: Iterable[Asked], keys: Mapping[int, float], seed: int) -> list[Asked]:
    """Put the pairs of the largest keys, by ids, first; pairs of equal keys at random, those without a key last."""
    return sorted(at_random(questions, seed), key=lambda question: -keys.get(question.id, -np.inf))


def random_order(seed: int) -> Order:
    """Return the random order of `at_random`."""
    return lambda questions, labels: at_random(questions.every, seed)


def order_by(keys: Mapping[int, float], seed: int) -> Order:
    """Return the order of `first_of`."""
    return lambda questions, labels: first_of(questions.every, keys, seed)


def by_disagreement(seed: int, scored: Sequence[Label] | None) -> Order:
    """Return the order that asks first what scorers contradict one another about most.

    Scores are taken from lines of `fdpo relabel`, those given, or of the file that the answers go to; where these have
    none, from the source.
    """

    def order(questions: Questions, labels: Sequence[Label]) -> list[Asked]:
        scores = in_lines(labels if scored is None else scored) or questions.scores()
        return first_of(questions.every, disagreement(scores), seed)

    return order


def in_lines(labels: Iterable[Label]) -> Scores:
    """Return the scores of the lines that have some; UserError where they are not as `fdpo relabel` writes them."""
    found: dict[int, dict[str, tuple[float, float]]] = {}
    for label in labels:
        raw = label.more.get("scores", {})
        for name, both in raw.items() if isinstance(raw, dict) else [("", raw)]:
            values = [value for score in both if (value := number(score)) is not None] if isinstance(both, list) else []
            if len(values) != 2:
                raise UserError(
                    f"the scores of pair {label.id} by {short(label.by)} are {short(raw)}, and are to be two numbers "
                    "for each scorer, as `fdpo relabel` writes them"
                )
            found.setdefault(label.id, {})[name] = (values[0], values[1])
    return found


def disagreement(scores: Scores) -> dict[int, float]:
    """Say how far scorers contradict one another about each pair.

    A scorer's gaps, of image 0 less image 1, are brought to a root mean square of 1; then the gaps in favour of either
    image are summed, and the smaller sum is what they contradict one another by: 0 where all agree. Raises UserError
    where no pair has scores of two scorers.
    """
    gaps = {id: {name: one - other for name, (one, other) in found.items()} for id, found in scores.items()}
    if not any(len(found) > 1 for found in gaps.values()):
        raise UserError("no pair has scores of two scorers, so none can disagree: name their file by --scores")
    scorers = sorted({name for found in gaps.values() for name in found})
    scales = {
        name: float(np.sqrt(np.mean([found[name] ** 2 for found in gaps.values() if name in found]))) or 1.0
        for name in scorers
    }
    contradiction = {}
    for id, found in gaps.items():
        scaled = np.array([gap / scales[name] for name, gap in found.items()])
        contradiction[id] = float(min(scaled.clip(min=0).sum(), (-scaled).clip(min=0).sum()))
    return contradiction
