"""What every reader yields, whatever the format on disk, and how labels become pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

import numpy as np


class ReadyLatents(NamedTuple):
    """One side of a pair that was encoded elsewhere."""

    values: np.ndarray
    """Scaled latents [c, h, w], float."""
    original_size: tuple[int, int] | None
    """Height and width of the image; None stands for those of the latents, times the VAE's factor."""
    crop: tuple[int, int]
    """Top and left of the crop in the resized image."""


Side = bytes | Path | ReadyLatents
"""An image as it is stored, not decoded yet."""


@dataclass(frozen=True)
class Pair:
    """One caption with its preferred and dispreferred image.

    `id` follows from the pair's place in the source, and the draws of noise and timestep belong to it, so it does not
    depend on what else is kept or dropped. `weight` scales its loss. `first` says whether the source lists the
    preferred image first; None for a tie or where there is no order.
    """

    id: int
    place: str
    caption: str
    preferred: Side
    dispreferred: Side
    weight: float = 1.0
    first: bool | None = None


@dataclass(frozen=True)
class Rejected:
    """A row that gives no pair: where it stands and why."""

    place: str
    reason: str


TIE = "a tie"


class PairSource(Protocol):
    """A format's reader. Rows are counted without decoding them; reading streams."""

    def __len__(self) -> int:
        """Return the number of rows in the source."""

    def identity(self) -> dict:
        """Return JSON that changes when the pairs do: it goes into the manifest of every cache made from them."""

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """Yield the pairs of the rows [start, stop) in order; a row becomes pairs or is `Rejected`."""


@runtime_checkable
class EmbeddedSource(PairSource, Protocol):
    """A source that may bring text embeddings along."""

    embedded: list[str]
    """Names of the embeddings that it has; none, and captions are encoded."""

    def embeddings(self, start: int, stop: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield caption and conditioning arrays of the rows [start, stop), in order."""


def brought_by(source: PairSource) -> list[str]:
    """Return the names of the text embeddings that a source brings along."""
    return source.embedded if isinstance(source, EmbeddedSource) else []


def compared(
    id: int,
    place: str,
    caption: object,
    sides: tuple[Side | None, Side | None],
    labels: tuple[object, object],
    ties: str,
) -> Iterator[Pair | Rejected]:
    """Yield the pair of two images by how each was judged: the larger label is preferred, equal ones are a tie.

    A tie is dropped, or ("half") kept both ways at half weight; the mirrored half has `id` + 1, so ids go in twos.
    """
    (first, second), (one, other) = labels, sides
    if not (_is_number(first) and _is_number(second)):
        yield Rejected(place, "no valid label")
    elif not isinstance(caption, str):
        yield Rejected(place, "no caption")
    elif one is None or other is None:
        yield Rejected(place, "an image is missing")
    elif first == second and ties == "drop":
        yield Rejected(place, TIE)
    elif first == second:
        yield Pair(id, place, caption, one, other, weight=0.5)
        yield Pair(id + 1, place, caption, other, one, weight=0.5)
    elif first > second:
        yield Pair(id, place, caption, one, other, first=True)
    else:
        yield Pair(id, place, caption, other, one, first=False)


def _is_number(label: object) -> TypeGuard[float]:
    return isinstance(label, (int, float)) and label == label
