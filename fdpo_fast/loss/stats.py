"""The statistics of a call of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor
from torch.utils._pytree import register_pytree_node

from fdpo_fast.ops.constants import Stat
from fdpo_fast.ops.results import rows_of


class LossStats(dict[str, Tensor]):
    """A dict whose keys also read as attributes: `stats["margin"]` is `stats.margin`.

    Detached float32 tensors. Per pair, [B]: error_w, error_l, ref_error_w, ref_error_l (means of squares),
    log_ratio_w, log_ratio_l, margin (beta * gap, whatever the loss takes off it), clipped (how many of the two
    log-ratios lie past `clip_log_ratio` or the exponential's cap, where the link goes on as its tangent), loser_scale
    (by how much the dispreferred sample's gradient was multiplied; 1 without `winner_preserving`).
    Scalar: accuracy, the share of pairs with a positive margin, a tie counting one half.
    """

    _packed: Tensor | None = None
    """The `Results.stats` that the items are made of once somebody asks for them: most calls are not asked."""

    @classmethod
    def of(cls, packed: Tensor) -> LossStats:
        """Return the statistics of a fused operator's `Results.stats`."""
        stats = cls()
        stats._packed = packed
        dict.__setitem__(stats, "", packed)  # the encoder of json asks no method of a dict that has no item
        return stats

    def _unpack(self) -> None:
        packed = self._packed
        if packed is not None:  # in an order in which other threads find all items at any time
            dict.update(self, named(rows_of(packed).unbind(), packed[-1]))
            dict.pop(self, "", None)
            self._packed = None

    def __getattr__(self, key: str) -> Tensor:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __missing__(self, key: str) -> Tensor:
        self._unpack()
        if not dict.__contains__(self, key):
            raise KeyError(key)
        return dict.__getitem__(self, key)

    def __reduce__(self) -> tuple[type[LossStats], tuple[dict[str, Tensor]]]:
        return LossStats, (dict(self),)


_NAMES = tuple(stat.name.lower() for stat in Stat if stat < Stat.COEFFICIENT_W)


def _unpacked_first(name: str) -> Callable[..., Any]:
    """Return a method of dict that sees all items."""
    method = getattr(dict, name)

    @wraps(method)
    def of_all(self: LossStats, *arguments: Any, **options: Any) -> Any:
        self._unpack()
        return method(self, *arguments, **options)

    return of_all


for _name in (
    *("__contains__", "__delitem__", "__eq__", "__ior__", "__iter__", "__len__", "__ne__", "__or__", "__repr__"),
    *("__reversed__", "__ror__", "__setitem__", "clear", "copy", "get", "items", "keys", "pop", "popitem"),
    *("setdefault", "update", "values"),
):
    setattr(LossStats, _name, _unpacked_first(_name))

register_pytree_node(
    LossStats,
    lambda stats: (list(stats.values()), list(stats)),
    lambda values, keys: LossStats(zip(keys, values, strict=True)),
    serialized_type_name="fdpo_fast.LossStats",
)


def named(rows: Sequence[Tensor], accuracy: Tensor) -> LossStats:
    """Name the rows of `Stat` that users see."""
    named = {name: rows[row] for row, name in enumerate(_NAMES)}  # older torch.compile trips over zip(strict=...)
    return LossStats(named, accuracy=accuracy)
