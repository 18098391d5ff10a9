"""What goes into and comes out of the operators of the loss, whichever backend runs them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STATS = ("error_w", "error_l", "ref_error_w", "ref_error_l", "log_ratio_w", "log_ratio_l", "margin", "clipped")
"""Rows of `Results.stats`."""


class Results(NamedTuple):
    """What the forward operator returns, all float32 but the gradient."""

    losses: Tensor  # [B], weighted
    loss: Tensor  # [], their mean or sum
    accuracy: Tensor  # [], share of positive margins, a tie counting one half
    stats: Tensor  # [8, B], rows STATS
    coefficient: Tensor  # [2B]: d loss / d pred = coefficient * (pred - target), in the order of pred's rows
    grad: Tensor  # like pred, for an upstream gradient of one; or [0], where it was not asked for

    @classmethod
    def empty(cls, pred: Tensor, form_grad: bool) -> Results:
        """Memory for the results; the kernels write every element."""
        pairs = len(pred) // 2
        return cls(
            pred.new_empty(pairs, dtype=torch.float32),
            pred.new_empty((), dtype=torch.float32),
            pred.new_empty((), dtype=torch.float32),
            pred.new_empty((len(STATS), pairs), dtype=torch.float32),
            pred.new_empty(2 * pairs, dtype=torch.float32),
            torch.empty_like(pred) if form_grad else pred.new_empty(0),
        )


def is_draws(target: Tensor) -> bool:
    """Whether the target is given by the draws [3, B] of its noise (`noise.draws`) and not as a tensor."""
    return target.dtype == torch.int64


def elements(samples: Tensor) -> int:
    """Elements of one sample of [rows, ...]."""
    return samples[0].numel() if len(samples) else 0
