"""What every reader yields, whatever the format on disk, and how labels become pairs."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fdpo_fast.data.reading import Seen, UnusableError, printable, read_file


class ReadyLatents(NamedTuple):
    """One side of a pair that was encoded elsewhere."""

    values: np.ndarray
    """Scaled latents [c, h, w], float."""
    original_size: tuple[int, int] | None
    """Height and width of the image; None stands for those of the latents, times the VAE's factor."""
    crop: tuple[int, int]
    """Top and left of the crop in the resized image."""


class Picture(NamedTuple):
    """An image as it is stored, not decoded yet."""

    name: str
    """What sentences call it: its path within the source, or its column."""
    content: bytes | Path
    seen: Seen | None = None
    """What told the content of its file when the source was opened."""

    def read(self) -> bytes:
        """Return the stored bytes.

        Raises UnusableError for a file that is none, UnreachableError for one that cannot be read now.
        """
        if isinstance(self.content, bytes):
            return self.content
        return read_file(self.content, printable(str(self.content)), self.seen)


Side = Picture | ReadyLatents


@dataclass(frozen=True)
class Pair:
    """One caption with its preferred and dispreferred image.

    `id` follows from the pair's place in the source, and the draws of noise and timestep belong to it, so it does not
    depend on what else is kept or dropped. `weight` scales its loss. `first` says whether the source lists the
    preferred image first; None for a tie or where there is no order. `row` is that of the source which it is read from.
    """

    id: int
    place: str
    caption: str
    preferred: Side
    dispreferred: Side
    weight: float = 1.0
    first: bool | None = None
    row: int = field(default=0, compare=False)
    text: int = field(default=0, compare=False)
    """What tells the embeddings of one caption apart; 0 where captions are encoded."""
    models: tuple[str, str] | None = field(default=None, compare=False)
    """What drew the preferred and the dispreferred image, where the source says it."""


@dataclass(frozen=True)
class Rejected:
    """A row that gives no pair: where it stands and why. What of the reason is before a colon is its kind."""

    place: str
    reason: str
    row: int = field(default=0, compare=False)
    pictures: tuple[Picture, ...] = field(default=(), compare=False)
    """What it has of images, for whoever looks at it."""


def kind_of(reason: str) -> str:
    """Return what reasons of one kind have in common."""
    return reason.split(":", 1)[0]


class LeftOut(NamedTuple):
    """A file of the source that no pair is read from, by its path within the source."""

    file: str
    reason: str


TIE, UNLABELLED = "a tie", "no label in data.labels"
BY_CHOICE = (TIE, UNLABELLED)
"""Reasons that are the user's wish, and no fault of a row."""
MISSING = "an image is missing"
OUTSIDE = "outside data.source, which takes data.outside"
"""How reasons end of what lies elsewhere, by a link, by `..` or by a whole path."""


@dataclass(frozen=True)
class Rules:
    """What is taken of a source, and what becomes of its labels."""

    ties: Literal["drop", "half"] = "drop"
    votes: Literal["decide", "weight", "conservative"] = "decide"
    split: str | None = None
    outside: bool = False
    """Whether files are read that lie outside the source."""


class PairSource(Protocol):
    """A format's reader. Rows are counted without decoding them; reading streams."""

    split: str | None
    """The split that is read, where the names in the source tell several."""

    def __len__(self) -> int:
        """Return the number of rows in the source."""

    def identity(self) -> dict:
        """Return JSON that changes when the pairs do: it goes into the manifest of every cache made from them."""

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop) in order; a row becomes pairs or is `Rejected`."""

    def extent(self) -> tuple[int, int]:
        """Return how many pairs, ties kept once, and how many images the rows give at most."""

    def left_out(self) -> list[LeftOut]:
        """List the files of the source that no pair is read from."""


@runtime_checkable
class EmbeddedSource(PairSource, Protocol):
    """A source that may bring text embeddings along."""

    embedded: dict[str, tuple[int, ...]]
    """The shapes of the embeddings that it has, by name; none, and captions are encoded."""

    def embeddings(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, np.ndarray]]]:
        """Yield row, caption and conditioning arrays of the rows [start, stop) that give a pair, in order."""


def brought_by(source: PairSource) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the text embeddings that a source brings along, by name."""
    return source.embedded if isinstance(source, EmbeddedSource) else {}


def compared(
    row: int,
    id: int,
    place: str,
    caption: object,
    sides: tuple[Side | str, Side | str],
    labels: tuple[object, object],
    rules: Rules,
    votes: bool = True,
    models: tuple[object, object] = (None, None),
) -> Iterator[Pair | Rejected]:
    """Yield the pair of two images by how each was judged: the larger label is preferred, equal ones are a tie.

    In place of an image, or of the caption, stands the reason why there is none. A tie is dropped, or ("half") kept
    both ways at half weight. Labels that are `votes`, or shares of them, decide; or ("weight") the difference of the
    shares weighs the loss; or ("conservative") the pair is kept both ways, each at the weight of its share: the loss of
    a label that is right with that probability. The mirrored half has `id` + 1, so ids go in twos. `models` drew the
    images, where both are named.
    """
    values = [value for label in labels if (value := number(label)) is not None]
    there = [side for side in sides if not isinstance(side, str)]
    reason = None
    if len(values) < 2:
        reason = f"no valid label: found {short(labels[0])} and {short(labels[1])}"
    elif isinstance(caption, UnusableError):
        reason = str(caption)
    elif half := why_no_text(caption):
        reason = half
    elif len(there) < 2:
        reason = next(side for side in sides if isinstance(side, str))
    elif values[0] == values[1] and rules.ties == "drop":
        reason = TIE
    if reason is not None:
        yield Rejected(place, reason, row, tuple(side for side in there if isinstance(side, Picture)))
        return
    (first, second), (one, other) = values, there
    named = (models[0], models[1]) if isinstance(models[0], str) and isinstance(models[1], str) else None
    if second > first:
        one, other, named = other, one, named and named[::-1]
    in_order = None if first == second else first > second
    more, less = _weights(max(first, second), min(first, second), rules if votes else Rules())
    yield Pair(id, place, str(caption), one, other, more, in_order, row, models=named)
    if less:
        yield Pair(id + 1, place, str(caption), other, one, less, None, row, models=named and named[::-1])


def _weights(larger: float, smaller: float, rules: Rules) -> tuple[float, float]:
    """Return the weight of a pair, and that of its mirrored half."""
    if larger == smaller:
        return 0.5, 0.5
    if rules.votes == "decide" or smaller < 0:  # no number of votes
        return 1.0, 0.0
    share = larger / (larger + smaller)
    return (2 * share - 1, 0.0) if rules.votes == "weight" else (share, 1 - share)


def number(label: object) -> float | None:
    """Return a label as a number, also one that is written as text; None where it is none."""
    if not isinstance(label, (bool, int, float, str, Decimal)):
        return None
    try:
        value = float({"true": 1, "false": 0}.get(label.strip().lower(), label) if isinstance(label, str) else label)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def why_no_text(caption: object) -> str | None:
    """Say why a caption is no text: something else, or half of a letter (a lone surrogate), which nothing can encode.

    Returns None for text.
    """
    if not isinstance(caption, str):
        return f"no caption: found {short(caption)}"
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        half = ascii(caption[error.start])[1:-1]
        return f"the caption is no text: it has half a letter, {half}, at {error.start}"
    return None


def short(value: object) -> str:
    """Show a value of the data in a few letters."""
    words = ascii(value) if isinstance(value, str) and why_no_text(value) else repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."


_IMAGES_IN_BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD", "SUkq", "TU0A", "data:image/")
"""How text starts that is PNG, JPEG, WebP, GIF or TIFF in base64, or a data URL; paths have a point."""


def in_text(value: str) -> bytes | None:
    """Return the bytes of an image that is stored as text, in base64; None for other text, as a path is."""
    if not value.startswith(_IMAGES_IN_BASE64) or len(value) < 64:
        return None
    try:
        return base64.b64decode("".join(value.split(",", 1)[-1].split()), validate=True)
    except (binascii.Error, ValueError):
        return None
