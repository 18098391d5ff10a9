"""Means, medians and win rates with bootstrap intervals. Arrays are [captions, images], float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

CONFIDENCE = 0.95
RESAMPLES = 5000


class Estimate(NamedTuple):
    """A figure with the ends of its interval, which are NaN where there is none."""

    value: float
    low: float
    high: float

    def figures(self) -> dict[str, float | None]:
        """Return the figure and its interval for JSON, which knows no NaN."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}

    def within(self, low: float, high: float) -> Estimate:
        """Cut the interval at what the figure can be."""
        return Estimate(self.value, *np.clip([self.low, self.high], low, high).tolist())  # NaN stays

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if math.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]")


def _mean(*samples: np.ndarray, axis: int) -> np.ndarray:
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)


def mean(values: np.ndarray, resample: str, seed: int = 0) -> Estimate:
    """Estimate the mean with a bootstrap interval of 95 % (bias-corrected and accelerated, Efron 1987).

    resample: "captions", each with all its images: for captions that stand for others; "images", within each caption:
    where the captions are all there are. With one thing to draw from there is no interval: it is NaN.
    """
    samples = (values.mean(axis=1),) if resample == "captions" else tuple(values)
    centre = float(values.mean())
    if any(len(sample) < 2 for sample in samples):
        return Estimate(centre, float("nan"), float("nan"))
    if all((sample == sample[0]).all() for sample in samples):
        return Estimate(centre, centre, centre)
    # BCa's jackknife costs a round for each image, and means of that many have no skew
    method = "BCa" if len(samples) == 1 else "percentile"
    rng = np.random.default_rng(seed)
    sizes = {"n_resamples": RESAMPLES, "batch": 200, "confidence_level": CONFIDENCE}  # all at once would be quadratic
    interval = bootstrap(samples, _mean, method=method, rng=rng, vectorized=True, **sizes).confidence_interval
    return _widened(
        Estimate(centre, float(interval.low), float(interval.high)), 1 if method == "BCa" else values.shape[1]
    )


def _widened(estimate: Estimate, n: int) -> Estimate:
    """Widen an interval for the few images of a caption (Rao and Wu 1988).

    n drawn from n have (n - 1) / n of the variance.
    """
    centre, wider = estimate.value, math.sqrt(n / (n - 1)) if n > 1 else 1.0
    return Estimate(centre, centre + wider * (estimate.low - centre), centre + wider * (estimate.high - centre))


def median(values: np.ndarray, resample: str, seed: int = 0) -> Estimate:
    """Estimate the median over all images, with a percentile bootstrap's interval of 95 %; `resample` as in `mean`."""
    captions, images = values.shape
    centre = float(np.median(values))
    if (captions if resample == "captions" else images) < 2:
        return Estimate(centre, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    batch = max(1, 2_000_000 // values.size)
    medians = []
    for at in range(0, RESAMPLES, batch):
        n = min(batch, RESAMPLES - at)
        if resample == "captions":
            resampled = values[rng.integers(captions, size=(n, captions))]
        else:
            resampled = np.take_along_axis(values[None], rng.integers(images, size=(n, captions, images)), axis=2)
        medians.append(np.median(resampled, axis=(1, 2)))
    low, high = np.quantile(np.concatenate(medians), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return _widened(Estimate(centre, low, high), images if resample == "images" else 1)


def wins(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return 1 where an image scores above the base's from the same noise, 1/2 where they are equal, else 0."""
    return (values > base) + 0.5 * (values == base)
