"""How the two images of each pair lie in one batch: rows [2B, ...] for models and losses, [B, 2, ...] for data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names of the layouts are read without torch too, by whoever checks a configuration
    from torch import Tensor

LAYOUTS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "halves": lambda rows: (rows[: len(rows) // 2], rows[len(rows) // 2 :]),
    "interleaved": lambda rows: (rows[0::2], rows[1::2]),
}
"""By the name of a layout of rows [2B, ...], the views [B, ...] of the preferred and of the dispreferred samples."""


def to_rows(pairs: Tensor) -> Tensor:
    """Return the rows [2B, ...] in halves, all preferred samples first, of pairs [B, 2, ...]; a copy."""
    return pairs.transpose(0, 1).flatten(0, 1)


def to_pairs(rows: Tensor) -> Tensor:
    """Return the pairs [B, 2, ...] of rows [2B, ...] in halves; a view."""
    return rows.unflatten(0, (2, -1)).transpose(0, 1)


def both(per_pair: Tensor) -> Tensor:
    """Return the rows [2B, ...] in halves in which both samples of a pair have the pair's value [B, ...]; a copy."""
    return per_pair.repeat(2, *[1] * (per_pair.ndim - 1))
