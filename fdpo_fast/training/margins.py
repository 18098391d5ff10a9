"""Where the pairs stand on the loss: quantiles of their margins, how hard each still pulls, and who pulls for many."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from fdpo_fast.loss.clipping import slope_of
from fdpo_fast.loss.eager import LossType
from fdpo_fast.loss.options import PairOptions

SATURATED = 0.05
"""A pair whose gradient weight is below this is saturated: what it had to teach is learnt, or out of reach."""
STEEP = 10.0
"""How much steeper a link is where a sample counts as steep than at the reference."""
QUANTILES = {"margin/q05": 0.05, "margin/q25": 0.25, "margin/q50": 0.5, "margin/q75": 0.75, "margin/q95": 0.95}
"""The figures of a record, and which quantile of the pairs' margins each is."""


class GradientWeight:
    """How hard pairs pull: |dL/dgap| of each over that of a pair at the reference, where all weigh 1.

    Under the sigmoid loss it is 2 sigmoid(-margin): near 0 where the pair is told apart, up to 2 where it is taken for
    the opposite.
    """

    def __init__(self, options: PairOptions) -> None:
        self._of_pair, self._beta, self._offset = options.of_pair, float(options.beta), options.offset
        origin = torch.full((), -self._offset, dtype=torch.float64, device="cpu")
        self._at_reference = abs(LossType.slope(self._of_pair, origin, self._beta).item())

    def __call__(self, margin: Tensor) -> Tensor:
        """Return the weight of each pair by its margin beta * gap, [b] float64."""
        gap = margin.double() / self._beta - self._offset
        return LossType.slope(self._of_pair, gap, self._beta).abs() / self._at_reference


class Steepness:
    """Which samples pull for many: those where the link is more than `STEEP` times as steep as at the reference.

    Reverse KL has none of them, a divergence whose link is exponential many once a policy makes samples less likely.
    """

    def __init__(self, link: Callable[[Tensor], Tensor]) -> None:
        self._link = link
        origin = torch.zeros(1, dtype=torch.float64, device="cpu")
        self._limit = STEEP * slope_of(link, origin).item()

    def __call__(self, log_ratio_w: Tensor, log_ratio_l: Tensor) -> Tensor:
        """Return the share of each pair's two samples, [b] float64, by their log-ratios [b]."""
        steep = [slope_of(self._link, u.double()) > self._limit for u in (log_ratio_w, log_ratio_l)]
        return torch.stack(steep).double().mean(0)


class Margins:
    """The margins of all pairs since the last look, on the device."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def add(self, margin: Tensor) -> None:
        """Take note of a micro-batch's, [b]; every rank adds as many."""
        self._seen.append(margin)

    def quantiles(self) -> dict[str, float]:
        """Return `QUANTILES` over the pairs of all ranks, NaN where a margin is, and begin anew. Collective."""
        own = torch.cat(self._seen).double()
        self._seen = []
        every = own.new_zeros(dist.get_world_size(), len(own))
        every[dist.get_rank()] = own
        dist.all_reduce(every)
        at = torch.tensor(list(QUANTILES.values()), dtype=torch.float64, device=own.device)
        found: list[float] = every.flatten().quantile(at).tolist()
        return dict(zip(QUANTILES, found, strict=True))
