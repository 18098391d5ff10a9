"""The optimizer on GPU tensors: one Triton launch for the parameters of a kind, one more before it to clip them.

The kernels find their tensors by a table of addresses. It stays on the device from step to step; rows of it are written
anew where a column has changed, and go there through pinned memory, so that nobody waits.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, compress
from operator import not_, or_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdpo_fast.ops.constants import STATE_BLOCK
from fdpo_fast.ops.once import once
from fdpo_fast.ops.triton.launch import OPTIONS, Lazy, counters, on, stream_of
from fdpo_fast.optim.codebook import dynamic_map
from fdpo_fast.optim.update import Clip, Columns, Kind, Rule, Updates

_kernels = Lazy("fdpo_fast.optim.triton_kernel")

ROWS = 4
"""The number of a program's blocks: one for each of its warps."""
CHUNK = 16 * ROWS * STATE_BLOCK
"""The number of elements of a program that adds up squares: with fewer, more of them would come together at the end."""


def _options(kind: Kind, aligned: bool) -> dict[str, Any]:
    """Return the launch's options: as few registers as do without spills, since then more programs run at once."""
    registers = 160 if not aligned else 80 if kind.low or torch.float32 in (kind.data, kind.grad) else 72
    return OPTIONS | ({"maxnreg": registers} if "maxnreg" in OPTIONS else {})


@once
def _lines(device: torch.device) -> Tensor:
    """Return both maps' tables [2, 6, 8] and, behind them, the values of their codes [2, 256], flat, on a device."""
    maps = [dynamic_map(signed) for signed in (True, False)]
    return torch.cat([*(one.table.flatten() for one in maps), *(one.decoded for one in maps)]).to(device)


@once
def _like(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an empty tensor that tells a kernel the type behind an address."""
    return torch.empty(0, dtype=dtype, device=device)


def staged(words: array[int], device: torch.device) -> Tensor:
    """Copy int64 numbers to a device without a wait. `words` may change at once.

    A copy from memory that is not pinned waits for all launches before it. torch hands out pinned memory again only
    once the copies that it was told of are done (CachingHostAllocator), so none is overwritten under way.
    """
    if device.type == "cpu":
        return torch.frombuffer(words[:], dtype=torch.int64)
    return torch.frombuffer(words, dtype=torch.int64).pin_memory().to(device, non_blocking=True)


class _Rules(NamedTuple):
    """The small table of what parameters have in common, by two views: [rules, 14] float32 and [rules, 7] int64."""

    rules: Sequence[Rule]
    rates: Tensor
    words: Tensor

    @classmethod
    def of(cls, rules: Sequence[Rule], device: torch.device, stream: int) -> _Rules:
        """Return the table of rules, the last one where that was of the same; buckets inside backward are many."""
        last = _last_rules.get((device, stream))
        if last is None or last.rules != rules:
            words = array("q")
            for rule in rules:
                seed = rule.seed - 2**64 if rule.seed >> 63 else rule.seed
                words.frombytes(array("f", (*rule.rates, 0.0)).tobytes())
                words.extend((seed, rule.step, rule.first))
            table = staged(words, device)
            last = _last_rules[device, stream] = cls(rules, table.view(torch.float32), table)
        return last


_last_rules: dict[tuple[torch.device, int], _Rules] = {}


class _Launch(NamedTuple):
    """Parameters that can all be read by 128 bits, or not, with their table on the device."""

    table: Tensor
    tensors: int
    programs: int
    norm_programs: int
    aligned: bool


class _Table:
    """The table of the parameters of one kind: rows are columns of `Updates`."""

    ROWS = 12
    """The number of rows.

    They are addresses of data, grad, m, v, and copy or low byte, of which no kind has both; elements; addresses of both
    absmax; index; rule; then, as a running count over the tensors, programs of the step and of the norm.
    """
    ALIGNED = 6
    """The number of the first rows that decide whether vectors can be read."""

    def __init__(self) -> None:
        self._columns: list[array[int] | None] = [None] * 10
        self._odd = [0] * self.ALIGNED  # bits below 16 that a row has
        self._words = array("q")
        self._launches: list[_Launch] = []

    def launches(self, updates: Updates) -> list[_Launch]:
        """Return the launches of a step, with the table as it is to be now."""
        data, grad, m, v, absmax_m, absmax_v, copy, low = updates.addresses
        counts = updates.counts
        columns = [data, grad, m, v, copy or low, counts, absmax_m, absmax_v, updates.indices, updates.rule_of]
        before = self._columns
        if columns == before:
            return self._launches
        n, device = len(counts), updates.kind.device
        if len(self._words) != n * self.ROWS:
            self._words, before = array("q", bytes(8 * n * self.ROWS)), [None] * len(columns)
        for row, (column, old) in enumerate(zip(columns, before, strict=True)):
            if column is not None and column != old:
                self._write(row, column)
                if row < self.ALIGNED:
                    self._odd[row] = reduce(or_, column) & 15
        if counts != before[5]:
            self._write(10, array("q", accumulate(-(-count // (ROWS * STATE_BLOCK)) for count in counts)))
            self._write(11, array("q", accumulate(-(-count // CHUNK) for count in counts)))
        self._columns = columns
        odd = self._misplaced(n) if any(self._odd) else []
        if any(odd) and not all(odd):
            fine = list(map(not_, odd))
            self._launches = [part for chosen in (fine, odd) for part in _Table().launches(_where(updates, chosen))]
        else:
            ends = self._words[n * 11 - 1], self._words[n * 12 - 1]
            self._launches = [_Launch(staged(self._words, device), n, *ends, not any(odd))]
        return self._launches

    def _misplaced(self, n: int) -> list[bool]:
        """Say of each tensor whether it cannot be read by 128 bits."""
        rows = torch.frombuffer(self._words, dtype=torch.int64)[: self.ALIGNED * n]
        return (rows.view(-1, n) & 15).any(0).tolist()

    def _write(self, row: int, column: array[int]) -> None:
        self._words[row * len(column) : (row + 1) * len(column)] = column


def _where(updates: Updates, chosen: list[bool]) -> Updates:
    """Take the parameters that are chosen."""

    def pick(column: array[int]) -> array[int]:
        return array("q", compress(column, chosen))

    kind, tensors, addresses, counts, indices, rule_of, rules = updates
    there: Columns[Sequence[Tensor]] = tensors.map(lambda column: list(compress(column, chosen)))
    return Updates(kind, there, addresses.map(pick), pick(counts), pick(indices), pick(rule_of), rules)


class Stepper:
    """A function that steps parameters in place, and remembers the tables that are on the device.

    Those of each stream stay by themselves: another one would have to wait for them.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[Kind, int], _Table] = {}

    def __call__(self, updates: Updates, clip: Clip | None = None) -> None:
        """Step the parameters of one kind, their gradients clipped where there is a clip."""
        kind, device = updates.kind, updates.kind.device
        stream = stream_of(device)
        with on(device):
            rules = _Rules.of(updates.rules, device, stream)
            table = self._tables.setdefault((kind, stream), _Table())
            for launch in table.launches(updates):
                factors = None if clip is None else _factors(kind, launch, clip)
                _kernels.step_kernel[(launch.programs,)](
                    launch.table,
                    rules.rates,
                    rules.words,
                    _lines(device),
                    factors,
                    launch.tensors,
                    _like(kind.data, device),
                    _like(kind.grad, device),
                    _like(kind.state, device),
                    COPIED=kind.copied,
                    LOW=kind.low,
                    STOCHASTIC=kind.stochastic,
                    ALIGNED=launch.aligned,
                    ROWS=ROWS,
                    BLOCK=STATE_BLOCK,
                    **_options(kind, launch.aligned),
                )


def _factors(kind: Kind, launch: _Launch, clip: Clip) -> Tensor:
    """Return what each gradient is multiplied with, 0 for one that is not finite, [tensors]."""
    device, tensors = kind.device, launch.tensors
    room = torch.empty(tensors + launch.norm_programs, dtype=torch.float32, device=device)
    _kernels.norm_kernel[(launch.norm_programs,)](
        launch.table,
        room,
        counters(device, tensors),
        clip.bad,
        clip.max_norm,
        tensors,
        _like(kind.grad, device),
        ALIGNED=launch.aligned,
        CHUNK=CHUNK,
        TILE=ROWS * STATE_BLOCK,
        **OPTIONS,
    )
    return room
