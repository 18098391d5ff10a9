r"""How likely each timestep is to be drawn: densities over the share of noise, as one table for all backends.

A density is over u in (0, 1], of which timestep i of T is the cell (i / T, (i + 1) / T]: u near 1 is most noise, and
what a schedule shifts is shifted behind it. Logit-normal, mode and cosmap are those of SD3 (Esser et al., arXiv
2403.03206, section 3.1), by their distribution functions F:

    logit_normal   u = sigmoid(mean + std z)                                 F(u) = Phi((logit(u) - mean) / std)
    mode           u = 1 - v - scale (cos^2(pi v / 2) - 1 + v), v uniform    F(u) = 1 - v(u)
    cosmap         u = 1 - 1 / (tan(pi v / 2) + 1)                           F(u) = 2 / pi arctan(u / (1 - u))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WORDS = 2**32
"""How many words a draw of a timestep can be."""
MODE_AT_MOST = 2 / (math.pi - 2)
"""The largest scale for which the mode density's u runs one way; the smallest is -1."""


def cumulative(weights: Tensor | Sequence[float]) -> Tensor:
    """Return how many of the 2^32 words of a draw give at most each timestep, [T] int64 on the CPU.

    weights: [T], not negative, in proportion to how likely each timestep is. Equal ones give the timesteps that are
    drawn without a density, bit by bit.

    Raises ValueError for weights of which none is positive, or one is negative or not finite.
    """
    given = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    if given.ndim != 1 or not len(given):
        raise ValueError(f"weights must be one number a timestep, [T], got shape {tuple(given.shape)}")
    if not (given.isfinite().all() and (given >= 0).all() and (given > 0).any()):
        raise ValueError("weights must be finite and not negative, and one at least positive")
    sums = (given / given.max()).cumsum(0)
    # the first word that lies behind a cell; the division is exact to a thousandth of a word
    ends = (sums * float(WORDS) / sums[-1]).ceil().to(torch.int64)
    ends[int(given.nonzero()[-1]) :] = WORDS
    return ends


def logit_normal(steps: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Return the weights [steps] of u = sigmoid(mean + std z), z normal: SD3's choice for mean 0 and std 1."""
    return torch.special.ndtr((torch.logit(_edges(steps)) - mean) / std).diff()


def mode(steps: int, scale: float = 1.29) -> Tensor:
    """Return the weights [steps] of SD3's mode sampling, heavier in the middle for a scale above 0."""
    edges = _edges(steps)
    low, high = torch.zeros_like(edges), torch.ones_like(edges)
    for _ in range(60):  # u falls from 1 to 0 along v
        middle = (low + high) / 2
        above = 1 - middle - scale * (torch.cos(math.pi / 2 * middle).square() - 1 + middle) > edges
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (1 - (low + high) / 2).diff()


def cosmap(steps: int) -> Tensor:
    """Return the weights [steps] of CosMap, under which the log signal-to-noise ratio goes as a cosine schedule's."""
    edges = _edges(steps)
    return (2 / math.pi * torch.atan2(edges, 1 - edges)).diff()


def within(steps: int, range: tuple[int, int]) -> Tensor:
    """Return the weights [steps] of the timesteps from the first to before the second, all alike.

    Raises ValueError where there are none of them, or not all.
    """
    first, end = range
    if not 0 <= first < end <= steps:
        raise ValueError(f"the range {first} to before {end} is none of the timesteps 0 to before {steps}")
    at = torch.arange(steps, dtype=torch.int64, device="cpu")
    return ((at >= first) & (at < end)).double()


def some(steps: int, only: Sequence[int]) -> Tensor:
    """Return the weights [steps] of some timesteps alone, all alike; ValueError where one is not there."""
    if out := [timestep for timestep in only if not 0 <= timestep < steps]:
        raise ValueError(f"{out[0]} is none of the timesteps 0 to before {steps}")
    weights = torch.zeros(steps, dtype=torch.float64, device="cpu")
    weights[list(only)] = 1
    return weights


def own(steps: int, weights: Sequence[float]) -> Tensor:
    """Return the weights [steps] that are given; ValueError where there are more or fewer."""
    if len(weights) != steps:
        raise ValueError(f"there are {len(weights)} weights for {steps} timesteps")
    return torch.tensor(weights, dtype=torch.float64, device="cpu")


DENSITIES: dict[str, Callable[..., Tensor]] = {
    "logit_normal": logit_normal,
    "mode": mode,
    "cosmap": cosmap,
    "range": within,
    "only": some,
    "weights": own,
}
"""By name, what gives the weights [steps]; every other argument is a key of the configuration."""


def _edges(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
