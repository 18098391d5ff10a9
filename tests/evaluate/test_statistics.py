"""Win rates and the intervals they come with."""

import math

import numpy as np
import pytest

from fdpo_fast.evaluate import statistics


def test_wins_count_ties_half():
    assert statistics.wins(np.array([[1.0, 2.0, 3.0]]), np.array([[0.0, 2.0, 4.0]])).tolist() == [[1.0, 0.5, 0.0]]


@pytest.mark.parametrize("of", ["mean", "median"])
@pytest.mark.parametrize("resample", ["captions", "images"])
def test_an_estimate_lies_in_its_interval(of, resample):
    values = np.random.default_rng(0).normal(3, 1, (40, 5))
    estimate = getattr(statistics, of)
    found = estimate(values, resample)
    assert found.value == pytest.approx(getattr(np, of)(values))
    assert found.low < found.value < found.high
    assert found == estimate(values, resample)  # the same every time


@pytest.mark.parametrize("estimate", [statistics.mean, statistics.median])
def test_where_there_is_nothing_to_draw_from(estimate):
    one = estimate(np.ones((1, 5)), "captions")
    assert one.value == 1
    assert math.isnan(one.low)
    assert estimate(np.full((4, 3), 0.7), "captions") == pytest.approx((0.7, 0.7, 0.7))


def test_images_of_a_caption_are_not_taken_for_captions():
    """What all images of a caption have in common widens the interval over captions, not the one over images."""
    values = np.repeat(np.random.default_rng(0).normal(0, 1, (30, 1)), 20, axis=1)
    values += np.random.default_rng(1).normal(0, 0.1, values.shape)
    wide, narrow = statistics.mean(values, "captions"), statistics.mean(values, "images")
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_interval_covers(monkeypatch):
    """95 % nominal; 400 experiments put the found share within 0.92 to 0.98 with overwhelming probability."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        low, high = statistics.mean((rng.random((1, 200)) < 0.7).astype(float), "images").within(0, 1)[1:]
        covered += low <= 0.7 <= high
    assert 0.92 <= covered / 400 <= 0.98


def coverage(resample, experiments, seed):
    """How often the interval of a win rate holds the true one: captions differ, images of one do not stand alone."""
    rng = np.random.default_rng(seed)
    captions, images, hits = 150, 4, 0
    fixed = rng.beta(4, 2, captions)
    for experiment in range(experiments):
        # each caption has a win rate of its own, with a mean of 2/3 over all captions there are
        rates = rng.beta(4, 2, captions) if resample == "captions" else fixed
        truth = 2 / 3 if resample == "captions" else fixed.mean()
        won = (rng.random((captions, images)) < rates[:, None]).astype(float)
        won[rng.random(won.shape) < 0.1] = 0.5
        found = statistics.mean(won, resample, seed=experiment)
        hits += found.low <= 0.9 * truth + 0.05 <= found.high
    return hits / experiments


@pytest.mark.slow
@pytest.mark.parametrize("resample", ["captions", "images"])
def test_95_percent_means_95_percent(resample, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    assert 0.93 <= coverage(resample, 2000, 7) <= 0.97


@pytest.mark.slow
def test_medians_too(monkeypatch):
    """Over captions that differ, of scores whose true median is 0."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng, hits = np.random.default_rng(5), 0
    for experiment in range(1000):
        values = rng.standard_normal((100, 1)) + rng.standard_normal((100, 4))
        hits += np.prod(np.sign(statistics.median(values, "captions", seed=experiment)[1:])) <= 0
    assert 0.93 <= hits / 1000 <= 0.97
