"""Parameters by their kinds: what one launch steps, and what of it is the same from step to step."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from fdpo_fast.optim.update import Columns, Kind, Rule, Updates


class Group(NamedTuple):
    """The parameters of one kind, with what is the same at every step as long as nothing has moved."""

    kind: Kind
    pick: Callable[[Sequence], Sequence]  # its own out of a column
    tensors: Columns[Sequence[Tensor]]  # those of `Updates`; nothing in place of gradients, which each step has anew
    addresses: Columns[array[int]]
    counts: array[int]
    indices: array[int]


def by_kind(
    devices: list[torch.device],
    dtypes: list[torch.dtype],
    grad_dtypes: list[torch.dtype],
    state_dtypes: list[torch.dtype],
    mirrors: list[Tensor | None],
    lows: list[Tensor | None],
    groups: list[int],
    rounding: list[bool],
) -> list[tuple[Kind, list[int]]]:
    """List the kinds that there are, with the positions of each."""
    positions: dict[Kind, list[int]] = {}
    copied = [copy is not None for copy in mirrors] or [False] * len(dtypes)
    rows = zip(devices, dtypes, grad_dtypes, state_dtypes, copied, lows, groups, strict=True)
    for at, (device, dtype, grad_dtype, state_dtype, copies, low, group) in enumerate(rows):
        rounds = rounding[group] and dtype != torch.float32
        kind = Kind(device, dtype, grad_dtype, state_dtype, copies, low is not None, rounds)
        positions.setdefault(kind, []).append(at)
    return list(positions.items())


def grouped(
    kind: Kind,
    positions: list[int],
    columns: Columns[Sequence],
    addresses: Columns[array[int]],
    counts: array[int],
    numbers: Sequence[int],
) -> Group:
    """Take the parameters of a kind, at `positions`, out of the columns of all."""

    def pick(column: Sequence) -> Sequence:
        return chosen(column) if len(positions) > 1 else (chosen(column),)

    def pick_numbers(column: Sequence[int]) -> array[int]:
        return array("q", pick(column))

    chosen = itemgetter(*positions)
    return Group(
        kind,
        pick,
        columns.of(kind).map(pick)._replace(grad=()),
        addresses.of(kind).map(pick_numbers)._replace(grad=array("q")),
        pick_numbers(counts),
        pick_numbers(numbers),
    )


def now(group: Group, grads: list[Tensor], grads_at: array[int], rule_of: list[int], rules: list[Rule]) -> Updates:
    """Return what a kind's parameters are told at this step."""
    kind, pick, tensors, addresses, counts, indices = group
    tensors, addresses = tensors._replace(grad=pick(grads)), addresses._replace(grad=array("q", pick(grads_at)))
    return Updates(kind, tensors, addresses, counts, indices, array("q", pick(rule_of)), rules)
