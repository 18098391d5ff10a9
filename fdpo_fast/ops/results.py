"""What goes into and comes out of the operators of the loss, whichever backend runs them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fdpo_fast.ops.constants import Stat


class Results(NamedTuple):
    """What the forward operator returns, all float32 but the gradient."""

    loss: Tensor  # [], or [B] for reduction "none"
    stats: Tensor  # [11 B + 1]: the rows of `Stat`, then the share of positive margins, a tie counting one half
    grad: Tensor | None  # like pred, for the upstream gradient that was named

    @classmethod
    def empty(cls, pred: Tensor, reduction: str, grad: Tensor | None) -> Results:
        """Make room for the results beside the gradient; the kernels write every element."""
        pairs, device = pred.shape[0] // 2, pred.device
        return cls(
            torch.empty(pairs if reduction == "none" else (), dtype=torch.float32, device=device),
            torch.empty(len(Stat) * pairs + 1, dtype=torch.float32, device=device),
            grad,
        )


def rows_of(stats: Tensor) -> Tensor:
    """Return the rows of `Stat`, [11, B], of `Results.stats`; a view."""
    return stats[:-1].view(len(Stat), -1) if len(stats) > 1 else stats.new_empty((len(Stat), 0))


def coefficients_of(stats: Tensor) -> Tensor:
    """Return the coefficients of the gradient, [2, B], of `Results.stats`; a view."""
    return rows_of(stats)[Stat.COEFFICIENT_W :]


def elements(samples: Tensor) -> int:
    """Count the elements of one sample of [rows, ...]."""
    return samples.numel() // max(samples.shape[0], 1)  # len() of a tensor is slow
