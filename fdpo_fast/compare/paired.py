"""Two settings compared seed by seed: what a seed does to both is no difference between them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_1samp

from fdpo_fast.evaluate import statistics
from fdpo_fast.evaluate.statistics import Estimate


class Difference(NamedTuple):
    """How a figure differs from that of another setting, paired by seed; p of a paired t-test, after Holm."""

    other: str
    gap: Estimate
    p: float


def interval(values: np.ndarray) -> Estimate:
    """Return the mean of values [n] with its interval of 95 % by Student's t, which is NaN for a single value."""
    centre = float(values.mean())
    if len(values) < 2:
        return Estimate(centre, math.nan, math.nan)
    if not np.ptp(values):  # scipy would warn
        return Estimate(centre, centre, centre)
    low, high = ttest_1samp(values, 0).confidence_interval(statistics.CONFIDENCE)
    return Estimate(centre, float(low), float(high))


def differences(ours: dict[int, float], others: dict[str, dict[int, float]]) -> list[Difference]:
    """Compare a figure, by seed, with those of others by name; one that shares fewer than two seeds is left out.

    Each p is adjusted for the number of others (Holm 1979).
    """
    found = []
    for name, theirs in others.items():
        seeds = sorted(ours.keys() & theirs.keys())
        if len(seeds) < 2:
            continue
        gaps = np.array([ours[seed] - theirs[seed] for seed in seeds])
        p = float(ttest_1samp(gaps, 0).pvalue) if gaps.std() else float(not gaps.any())
        found.append(Difference(name, interval(gaps), p))
    return _holm(found)


def _holm(differences: list[Difference]) -> list[Difference]:
    """Adjust the p of differences for their number (Holm 1979)."""
    order = sorted(range(len(differences)), key=lambda number: differences[number].p)
    adjusted, largest = {}, 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * differences[number].p))
        adjusted[number] = largest
    return [difference._replace(p=adjusted[number]) for number, difference in enumerate(differences)]
