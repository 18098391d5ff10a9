"""A win rate that may be looked at after every answer: its interval, and when the answers suffice.

An interval for a fixed number of answers errs far more often than it says once somebody stops as soon as it looks good.
The one here covers the win rate at all numbers of answers at once, with a probability of 95 %, so any rule to stop by
is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln

from fdpo_fast.evaluate.statistics import CONFIDENCE, Estimate

EVEN = 0.1
"""A win rate that is surely less than this away from one half is called even."""


class Verdict(Enum):
    """What the answers so far have shown."""

    OPEN = "more answers are needed"
    FIRST = "the first is preferred"
    SECOND = "the second is preferred"
    EVEN = f"neither is preferred by more than {0.5 + EVEN:.0%}"


def log_evidence(total: np.ndarray | float, count: np.ndarray | float, rate: np.ndarray | float) -> np.ndarray:
    """Return the logarithm of the evidence against a win `rate` in (0, 1), of outcomes in [0, 1], by sum and count.

    It is the beta-binomial mixture with a uniform prior, B(1 + S, 1 + n - S) / (rate^S (1 - rate)^(n - S)) (Robbins
    1970; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences",
    Annals of Statistics 49, 2021). For each p of the mixture, (p / m)^x ((1 - p) / (1 - m))^(1 - x) is convex in x, so
    where outcomes have mean m given those before, its mean is 1 at most, also with ties counted as 1/2. So the evidence
    against the true rate is a supermartingale that begins at 1, and by Ville's inequality it ever reaches 1 / a with
    probability a at most.
    """
    total, count, rate = (np.asarray(value, dtype=np.float64) for value in (total, count, rate))
    mixture = betaln(1 + total, 1 + count - total)
    return np.asarray(mixture - total * np.log(rate) - (count - total) * np.log1p(-rate))


def win_rate(outcomes: Sequence[float]) -> Estimate:
    """Estimate the win rate of outcomes in [0, 1] (1 a win, 1/2 a tie), independent draws of one population.

    The interval holds the rates against which `log_evidence` is below log(1 / 0.05), at whatever number of outcomes one
    stops. Without an outcome it is [0, 1].
    """
    count, total = len(outcomes), float(sum(outcomes))
    if not count:
        return Estimate(math.nan, 0.0, 1.0)
    enough, centre = -math.log(1 - CONFIDENCE), total / count

    def beyond(rate: float) -> float:
        return float(log_evidence(total, count, rate)) - enough

    tiny = 1e-12
    least = min(max(centre, tiny), 1 - tiny)  # where the evidence is least
    low = brentq(beyond, tiny, least) if beyond(tiny) > 0 else 0.0
    high = brentq(beyond, least, 1 - tiny) if beyond(1 - tiny) > 0 else 1.0
    return Estimate(centre, float(low), float(high))


def verdict(estimate: Estimate) -> Verdict:
    """Say what an interval of the second's win rate over the first has shown."""
    if estimate.low > 0.5:
        return Verdict.SECOND
    if estimate.high < 0.5:
        return Verdict.FIRST
    return Verdict.EVEN if estimate.low > 0.5 - EVEN and estimate.high < 0.5 + EVEN else Verdict.OPEN
