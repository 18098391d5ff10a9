"""What every reader yields, whatever the format on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class Pair:
    """One caption with its preferred and dispreferred image (RGB).

    `id` is the pair's place in the source (twice the row, plus one for the mirrored half of a tie): draws of noise
    and timestep belong to it, so it does not depend on what else is kept or dropped. `weight` scales its loss.
    """

    id: int
    caption: str
    preferred: Image.Image
    dispreferred: Image.Image
    weight: float = 1.0


@dataclass(frozen=True)
class Rejected:
    """A row that gives no pair: where it stands and why."""

    place: str
    reason: str


class PairSource(Protocol):
    """A format's reader. Rows are counted without decoding them; reading streams."""

    def __len__(self) -> int:
        """Rows in the source."""

    def identity(self) -> dict:
        """JSON that changes when the pairs do: it goes into the manifest of every cache made from them."""

    def read(self, start: int, stop: int) -> Iterator[Pair | Rejected]:
        """The rows [start, stop) in order; a row becomes one pair, two (a tie kept both ways), or a `Rejected`."""
