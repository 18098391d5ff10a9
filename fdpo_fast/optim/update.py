"""What one step does to one parameter, as every backend is told it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from typing_extensions import NamedTuple  # which may be generic before Python 3.11

ROUNDINGS = ("stochastic", "nearest")
WEIGHTS = {"plain": 8, "bf16+8": 16}
"""How weights are kept, each with the elements that 128 random bits are enough for.

"bf16+8": bfloat16 parameters are the upper part of 24-bit weights, whose lowest byte is among the states (`low_byte`).
"""


class Rates(NamedTuple):
    """The numbers of AdamW at step t, in the order of csrc/parameter.h. With m, v the moments behind this gradient:

    p <- p - (decay * p + step_size * m / (sqrt(v) + eps))

    which is Loshchilov and Hutter's update (arXiv 1711.05101) with the bias corrections drawn out of the fraction.
    """

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    decay: float  # lr * weight_decay; taken from one it would be rounded away at small rates
    step_size: float  # lr * sqrt(1 - beta2^t) / (1 - beta1^t)
    eps: float  # times sqrt(1 - beta2^t)

    @classmethod
    def of(cls, group: dict[str, Any], step: int) -> Rates:
        """Compute the numbers of a parameter group at `step`, which counts from 1."""
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        correction = math.sqrt(1 - beta2**step)
        step_size = lr * correction / (1 - beta1**step)
        return cls(beta1, 1 - beta1, beta2, 1 - beta2, lr * group["weight_decay"], step_size, group["eps"] * correction)


class Rule(NamedTuple):
    """What the parameters of a group that are at the same step have in common.

    Element e of a half-precision parameter takes half-word e + first of the stream (seed, index, step), that of a
    24-bit one byte e + first of it, see `eager.random_bits`.
    """

    rates: Rates
    stochastic: bool
    seed: int
    step: int
    first: int

    @classmethod
    def of(cls, group: dict[str, Any], step: int, first: int = 0) -> Rule:
        """Return the rule of a group's parameters at `step`, which counts from 1; `first` comes to the group's own."""
        stochastic = group["rounding"] == "stochastic"
        return cls(Rates.of(group, step), stochastic, group["seed"], step, group["first_element"] + first)


class Update(NamedTuple):
    """A parameter that is to be stepped; everything contiguous and on one device.

    The states are uint8 codes with the absmax of each block, or float32 without (then absmax is None).
    """

    data: Tensor
    grad: Tensor
    m: Tensor
    v: Tensor
    absmax_m: Tensor | None
    absmax_v: Tensor | None
    copy: Tensor | None  # bfloat16, receives a float32 parameter's rounded values
    low: Tensor | None  # int8, the lowest byte of a bfloat16 parameter
    number: int  # of the parameter
    rule: Rule


class Kind(NamedTuple):
    """What parameters have in common that one launch steps."""

    device: torch.device
    data: torch.dtype
    grad: torch.dtype
    state: torch.dtype  # uint8 or float32
    copied: bool
    low: bool
    stochastic: bool  # half-precision parameters only


Column = TypeVar("Column")
Other = TypeVar("Other")


class Columns(NamedTuple, Generic[Column]):
    """One column for each tensor of `Update`, in its order; None for what a kind has not."""

    data: Column
    grad: Column
    m: Column
    v: Column
    absmax_m: Column | None
    absmax_v: Column | None
    copy: Column | None
    low: Column | None

    def of(self, kind: Kind) -> Columns[Column]:
        """Return the columns that a kind has."""
        coded = kind.state == torch.uint8
        return self._replace(
            absmax_m=self.absmax_m if coded else None,
            absmax_v=self.absmax_v if coded else None,
            copy=self.copy if kind.copied else None,
            low=self.low if kind.low else None,
        )

    def map(self, function: Callable[[Column], Other]) -> Columns[Other]:
        """Return what a function makes of each column that is there."""

        def there(column: Column | None) -> Other | None:
            return None if column is None else function(column)

        data, grad, m, v, *others = self
        absmax_m, absmax_v, copy, low = map(there, others)
        return Columns(function(data), function(grad), function(m), function(v), absmax_m, absmax_v, copy, low)


class Updates(NamedTuple):
    """Parameters of one kind that are to be stepped, by columns."""

    kind: Kind
    tensors: Columns[Sequence[Tensor]]
    addresses: Columns[array[int]]  # of these; int64 as all that follow
    counts: array[int]  # elements
    indices: array[int]
    rule_of: array[int]  # into `rules`
    rules: Sequence[Rule]

    @classmethod
    def of(cls, rows: Sequence[Update]) -> Updates:
        """Put parameters of one kind into columns."""
        like, rules = rows[0], list(dict.fromkeys(row.rule for row in rows))
        tensors: Columns[Sequence[Tensor]] = Columns(
            [row.data for row in rows],
            [row.grad for row in rows],
            [row.m for row in rows],
            [row.v for row in rows],
            _there(row.absmax_m for row in rows),
            _there(row.absmax_v for row in rows),
            _there(row.copy for row in rows),
            _there(row.low for row in rows),
        )
        return cls(
            Kind(
                like.data.device,
                like.data.dtype,
                like.grad.dtype,
                like.m.dtype,
                like.copy is not None,
                like.low is not None,
                like.rule.stochastic and like.data.dtype != torch.float32,
            ),
            tensors,
            tensors.map(lambda column: array("q", map(Tensor.data_ptr, column))),
            array("q", map(Tensor.numel, tensors.data)),
            array("q", (row.number for row in rows)),
            array("q", (rules.index(row.rule) for row in rows)),
            rules,
        )

    def rows(self) -> Iterator[Update]:
        """Yield one parameter after the other."""
        columns = (column or repeat(None) for column in self.tensors)
        rules = map(self.rules.__getitem__, self.rule_of)
        return map(Update, *columns, self.indices, rules)  # ends with the shortest, which is data


def _there(column: Iterable[Tensor | None]) -> list[Tensor] | None:
    """Return a column of tensors; None for one without any."""
    tensors = [tensor for tensor in column if tensor is not None]
    return tensors or None


class Clip(NamedTuple):
    """A bound for each gradient by itself: times min(1, max_norm / |g|); one that is not finite counts as zero.

    A norm beyond float32 is not finite.
    """

    max_norm: float  # 0: none
    bad: Tensor  # [] float32, becomes 1 where a gradient was not finite

    def gradients(self, updates: Updates) -> None:
        """Clip the gradients of updates in place, by torch's operations."""
        grads = list(updates.tensors.grad)
        norms = torch.stack(torch._foreach_norm(grads, dtype=torch.float32))
        finite = norms.isfinite()
        if self.max_norm:
            torch._foreach_mul_(grads, list((self.max_norm / norms).clamp(max=1.0).to(grads[0].dtype)))
        if norms.device.type != "cpu" or not finite.all():  # elsewhere it would have to be waited for
            for grad, fine in zip(grads, finite, strict=True):
                grad.masked_fill_(~fine, 0.0)
        self.bad.copy_(torch.maximum(self.bad, 1.0 - finite.all().float()))
