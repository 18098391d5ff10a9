"""How a JSON record of a pair or a ranking may look.

A pair: `{"image_0": ..., "image_1": ..., "caption": ..., "prefer_0": 1, "prefer_1": 0}`, or with images whose keys say
which is preferred. A ranking of any number of images: `{"images": [...], "caption": ..., "rank": [...]}`, 1 the best,
equal ranks a tie; each two of its images become a pair. The names that HPDv2, HPDv3 and ImageReward have for these are
read too. A key whose value is null counts as one that is not there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from fdpo_fast.data.pairs import Pair, Rejected, number, short
from fdpo_fast.data.reading import UnusableError

_CAPTION = ("caption", "prompt", "text")
_JUDGED = ("image_0", "image_1")
_LABELS = (("prefer_0", "prefer_1"), ("label_0", "label_1"))
_IN_ORDER = (("path1", "path2"), ("chosen", "rejected"), ("preferred", "dispreferred"), ("winner", "loser"))
"""Keys of the preferred and the dispreferred image; the first are HPDv3's."""
_IMAGES = ("images", "image_path", "file_path", "generations")
_BEST_IS_LOWEST = ("rank", "ranking")
_BEST_IS_HIGHEST = ("human_preference", "scores")
RECORD = (*_JUDGED, *(key for keys in _IN_ORDER for key in keys), *_IMAGES)
"""The keys of images, by which a file of records is known."""

_LOOKED_FOR = (
    f"looked for {' and '.join(_JUDGED)} with {' and '.join(_LABELS[0])}; for "
    f"{', '.join(' and '.join(keys) for keys in _IN_ORDER)}; for one of {', '.join(_IMAGES)} with one of "
    f"{', '.join((*_BEST_IS_LOWEST, *_BEST_IS_HIGHEST))}"
)


@dataclass(frozen=True)
class Record:
    """What a record says: its images, a label for each, the larger the better, and the caption or why there is none."""

    images: list
    labels: list
    caption: object
    votes: bool = False
    """Whether the labels are numbers of votes, or their shares."""
    listed: bool = True
    """Whether the order of its images says nothing of which is preferred."""
    models: list = field(default_factory=list)
    """What drew each image of a ranking; empty where it does not say so."""
    scores: dict[str, list[float]] = field(default_factory=dict)
    """The scores of a ranking's images by scorer, as `fdpo pairs` writes them; empty where there are none."""

    def ordered(self, pairs: Iterable[Pair | Rejected]) -> Iterator[Pair | Rejected]:
        """Yield pairs of this record, without an order of their images where that is the label."""
        for pair in pairs:
            yield pair if self.listed or isinstance(pair, Rejected) else replace(pair, first=None)


def parse(raw: Any) -> Record:
    """Read a record; UnusableError where it is none, with what was found and what is looked for."""
    if not isinstance(raw, dict):
        raise UnusableError(f"no JSON object: found {short(raw)}")
    if _TWICE in raw:
        raise UnusableError(f"a key is there twice: {short(raw[_TWICE])}")
    record = {key: value for key, value in raw.items() if value is not None}
    caption = _first(record, _CAPTION)
    if caption is None:
        caption = UnusableError(f"no caption: found the keys {', '.join(raw)}; looked for {', '.join(_CAPTION)}")
    for one, other in _IN_ORDER:
        if one in record and other in record:
            return Record([record[one], record[other]], _shares(record), caption, votes=True, listed=False)
    if _JUDGED[0] in record:
        images = [record.get(key) for key in _JUDGED]
        labels = next(([record.get(k) for k in keys] for keys in _LABELS if any(k in record for k in keys)), [None] * 2)
        return Record(images, labels, caption, votes=True)
    images, ranks, scores = (_first(record, keys) for keys in (_IMAGES, _BEST_IS_LOWEST, _BEST_IS_HIGHEST))
    labels = [_negated(rank) for rank in ranks] if isinstance(ranks, list) else scores
    if not isinstance(images, list) or not isinstance(labels, list):
        raise UnusableError(f"neither a pair nor a ranking: found the keys {', '.join(raw) or 'none'}; {_LOOKED_FOR}")
    if len(images) < 2 or len(images) != len(labels):
        raise UnusableError(f"neither a pair nor a ranking: found {len(images)} images and {len(labels)} labels")
    models = record.get("models")
    models = models if isinstance(models, list) and len(models) == len(images) else []
    return Record(images, labels, caption, models=models, scores=_scores(record.get("scores"), len(images)))


def _scores(raw: object, count: int) -> dict[str, list[float]]:
    """Return the scores of so many images by scorer, of those scorers that have a number for each."""
    lists = {name: own for name, own in raw.items() if isinstance(own, list)} if isinstance(raw, dict) else {}
    found = {name: [value for score in own if (value := number(score)) is not None] for name, own in lists.items()}
    return {name: own for name, own in found.items() if len(own) == count == len(lists[name])}


def _shares(record: dict) -> list:
    """Return the labels of a pair whose first image is preferred: the votes where there are some, or 1 and 0.

    The keys say who is preferred, and the votes how surely: the larger number is the preferred image's, in whichever
    order they are listed.
    """
    votes = record.get("choice_dist")
    counts = [count for vote in votes if (count := number(vote)) is not None] if isinstance(votes, list) else []
    confidence = number(record.get("confidence"))
    if len(counts) == 2 and counts[0] != counts[1] and min(counts) >= 0:
        return sorted(counts, reverse=True)
    if confidence is not None and 0.5 < confidence <= 1:
        return [confidence, 1 - confidence]
    return [1, 0]


_TWICE = "\0twice"
"""Stands in an object for a key that it has twice; no file that says so by itself has such a key."""


def loads(text: str) -> Any:
    """Read JSON. A whole number of hundreds of digits counts as infinite; `parse` refuses a key that comes twice."""
    return json.loads(text, object_pairs_hook=_object, parse_int=_whole)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        found[_TWICE] = next(key for at, key in enumerate(names) if key in names[:at])
    return found


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else math.inf


def _negated(rank: object) -> object:
    """Return a rank, of which the lowest is the best, as a label; what is no number as it is."""
    value = number(rank)
    return rank if value is None else -value


def _first(record: dict, names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if name in record), None)
