"""What is in a source of pairs, counted row by row as caching would read it, and a sheet of it to look at."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from PIL import Image

from fdpo_fast.config.schema import Data
from fdpo_fast.data.decode import Unreadable, decode
from fdpo_fast.data.found import shapes
from fdpo_fast.data.images import Geometry, Placed, cut
from fdpo_fast.data.pairs import BY_CHOICE, UNLABELLED, Pair, Picture, ReadyLatents, Rejected
from fdpo_fast.data.prefetch import ahead
from fdpo_fast.data.reading import UnreachableError, UnusableError

SHOWN, SHOWN_REFUSED, SIDE = 24, 24, 192
"""How many pairs and refused rows a sheet has, and the side of an image on it in pixels."""


@dataclass
class Findings:
    """What was counted over a source of pairs."""

    rows: int = 0
    pairs: int = 0
    ties: int = 0
    unlabelled: int = 0
    """Pairs that are dropped for want of a label in data.labels."""
    first_preferred: int = 0
    second_preferred: int = 0
    same_image_twice: int = 0
    repeated_pairs: int = 0
    captions: int = 0
    distinct_captions: int = 0
    empty_captions: int = 0
    over_length: int | None = None
    """Distinct captions of more tokens than the text encoders read; None where there is no tokenizer."""
    images: int = 0
    distinct_images: int = 0
    smaller_than_resolution: int = 0
    different_shapes: int = 0
    """Pairs whose images differ in shape."""
    cut_preferred: float = 0.0
    cut_dispreferred: float = 0.0
    """Mean shares of the images that are cut off."""
    split: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    """How many distinct images there are by width x height, the most frequent first."""
    refused: list[dict[str, str]] = field(default_factory=list)
    """The rows that cannot be used, each with its place and the reason."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    """The files that no pair is read from, each with the reason."""


class Shown(NamedTuple):
    """A pair, or a refused row, as a person sees it."""

    words: str
    images: list[tuple[str, Image.Image]]
    """Small images, each with what it is."""


@dataclass
class Sheet:
    """Some pairs drawn at random, as they are going to be cut, and the first of the refused rows."""

    pairs: list[Shown] = field(default_factory=list)
    refused: list[Shown] = field(default_factory=list)


Size6 = tuple[int, int, int, int, int, int]


class _Look(NamedTuple):
    sides: list[tuple[bytes, Size6]] | Rejected
    """The digest of both sides of a pair and `Frame.size`, or why it has none."""
    shown: list[tuple[str, Image.Image]]


def examine(
    rows: Iterable[Pair | Rejected],
    data: Data,
    count: int = 0,
    over_length: Callable[[list[str]], list[int]] | None = None,
) -> tuple[Findings, Sheet]:
    """Count over rows read with ties kept both ways, of which there are `count`.

    over_length: says of captions by how many tokens they are too long. Memory grows by some 150 bytes a pair, not with
    images.
    """
    findings, sheet = Findings(rows=count), Sheet()
    geometry = Geometry(data, 0, 1, 1)
    chosen = set(random.Random(0).sample(range(count), min(SHOWN, count)))  # noqa: S311  # the same rows at each look
    captions: set[str] = set()
    images: set[bytes] = set()
    pairs: set[bytes] = set()
    sizes: Counter[str] = Counter()
    frames: list[list[Size6]] = []

    def look(row: Pair | Rejected) -> tuple[Pair | Rejected, _Look]:
        return row, _look(row, geometry, row.row in chosen, len(sheet.refused) < SHOWN_REFUSED)

    for row, (sides, shown) in ahead(look, rows, data.workers):
        if isinstance(sides, Rejected) or isinstance(row, Rejected):
            refused = sides if isinstance(sides, Rejected) else row
            entry = {"place": refused.place, "reason": refused.reason}
            findings.unlabelled += refused.reason == UNLABELLED
            if refused.reason not in BY_CHOICE and entry not in findings.refused[-1:]:
                findings.refused.append(entry)
                if len(sheet.refused) < SHOWN_REFUSED:
                    sheet.refused.append(Shown(f"{refused.place}: {refused.reason}", shown))
            continue
        if row.weight < 1:  # half of a tie
            findings.ties += row.id % 2
            if row.id % 2:
                continue
        else:
            findings.pairs += 1
            findings.first_preferred += row.first is True
            findings.second_preferred += row.first is False
        if shown:
            sheet.pairs.append(Shown(row.caption, shown))
        findings.captions += 1
        captions.add(row.caption)
        findings.empty_captions += not row.caption.strip()
        (first, size), (second, other) = sides
        frames.append([size, other])
        findings.same_image_twice += first == second
        key = _digest(row.caption.encode() + b"".join(sorted((first, second))))
        findings.repeated_pairs += key in pairs
        pairs.add(key)
        for name, (height, width, *_) in sides:
            findings.images += 1
            if name not in images:
                images.add(name)
                sizes[f"{width}x{height}"] += 1
                findings.smaller_than_resolution += min(width, height) < data.resolution
    findings.distinct_captions, findings.distinct_images = len(captions), len(images)
    findings.sizes = dict(sizes.most_common())
    if over_length:
        findings.over_length = sum(over > 0 for over in over_length(sorted(captions)))
    for name, value in shapes(torch.tensor(frames, dtype=torch.int64, device="cpu").view(-1, 2, 6)).items():
        setattr(findings, name, value)
    return findings, sheet


def _look(row: Pair | Rejected, geometry: Geometry, shown: bool, shown_refused: bool) -> _Look:
    """Read and decode both sides of a pair, or find why that cannot be done."""
    sides = row if isinstance(row, Rejected) else geometry.place(row)
    if isinstance(sides, Rejected):
        return _Look(sides, _whole(sides.pictures) if shown_refused else [])
    images, found = [], []
    for name, side in zip(("preferred", "dispreferred"), sides, strict=True):
        try:
            if not isinstance(side.side, ReadyLatents):
                image = side.image(geometry.data.max_megapixels)
                if shown:
                    pixels = cut(image, side.frame).permute(1, 2, 0).numpy()
                    images.append((name, _small(Image.fromarray(pixels))))
        except UnusableError as error:
            assert isinstance(row, Pair)
            pictures = [side for side in (row.preferred, row.dispreferred) if isinstance(side, Picture)]
            return _Look(Rejected(row.place, str(error), row.row), _whole(pictures) if shown_refused else [])
        found.append((_content(side), side.frame.size))
    return _Look(found, images)


def _whole(pictures: Iterable[Picture]) -> list[tuple[str, Image.Image]]:
    """Show those images of a refused row that can be decoded."""
    shown = []
    for picture in pictures:
        try:
            shown.append((picture.name, _small(decode(picture.read(), megapixels=64))))
        except (UnusableError, Unreadable, UnreachableError):
            continue
    return shown


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((SIDE, SIDE))
    return image


def _content(side: Placed) -> bytes:
    return _digest(side.side.values.tobytes() if isinstance(side.side, ReadyLatents) else side.side)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
