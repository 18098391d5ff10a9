"""An interval that may be looked at after every answer: against an integral, and how often it errs where one peeks."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast.evaluate.sequential import EVEN, Verdict, log_evidence, verdict, win_rate
from fdpo_fast.evaluate.statistics import Estimate


@pytest.mark.parametrize(("wins", "count", "rate"), [(0, 1, 0.3), (7, 10, 0.5), (13.5, 40, 0.41), (3, 200, 0.02)])
def test_evidence_is_the_mixture_of_likelihood_ratios(wins, count, rate):
    def ratio(p):
        return (p / rate) ** wins * ((1 - p) / (1 - rate)) ** (count - wins)

    with mpmath.workdps(30):
        mixture = mpmath.quad(ratio, mpmath.linspace(0, 1, 41))
        assert float(log_evidence(wins, count, rate)) == pytest.approx(float(mpmath.log(mixture)), abs=1e-9)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=200))
def test_the_interval_holds_the_rates_that_evidence_does_not_exclude(outcomes):
    found = win_rate(outcomes)
    assert found.value == pytest.approx(np.mean(outcomes))
    assert 0 <= found.low <= found.value <= found.high <= 1
    rates = np.linspace(0.001, 0.999, 999)
    kept = rates[log_evidence(sum(outcomes), len(outcomes), rates) < math.log(20)]
    assert found.low == pytest.approx(kept.min(), abs=1.1e-3)
    assert found.high == pytest.approx(kept.max(), abs=1.1e-3)
    mirrored = win_rate([1 - outcome for outcome in outcomes])
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-9)


def test_without_an_answer_nothing_is_known():
    found = win_rate([])
    assert math.isnan(found.value)
    assert found[1:] == (0, 1)
    assert verdict(found) is Verdict.OPEN


def drawn(rate, ties, sequences=2000, length=400):
    """Outcomes with a win rate, of which a share are ties."""
    rng = np.random.default_rng(0)
    wins = (rng.random((sequences, length)) < (rate - ties / 2) / (1 - ties)).astype(float)
    return np.where(rng.random((sequences, length)) < ties, 0.5, wins)


def ever(outcomes, rate):
    """The share of the sequences in which evidence against a rate is ever enough."""
    total, count = outcomes.cumsum(axis=1), np.arange(1, outcomes.shape[1] + 1)
    return (log_evidence(total, count, rate) >= math.log(20)).any(axis=1).mean()


@pytest.mark.parametrize(("rate", "ties"), [(0.5, 0), (0.5, 0.4), (0.3, 0), (0.62, 0.2), (0.95, 0), (0.02, 0)])
def test_it_errs_in_a_twentieth_of_the_sequences_at_most_however_often_one_looks(rate, ties):
    assert ever(drawn(rate, ties), rate) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_an_interval_for_a_fixed_number_errs_far_more_often():
    """Else the sequence would be no better than what everybody knows."""
    outcomes = drawn(0.5, 0)
    count = np.arange(1, outcomes.shape[1] + 1)
    away = np.abs(outcomes.cumsum(axis=1) / count - 0.5)
    assert (away > 1.96 * 0.5 / np.sqrt(count))[:, 20:].any(axis=1).mean() > 0.25


def test_a_clear_preference_is_soon_found():
    assert ever(drawn(0.7, 0, length=150), 0.5) > 0.9
    assert ever(drawn(0.6, 0, length=400), 0.5) > 0.8


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.51, 0.9, Verdict.SECOND),
        (0.1, 0.49, Verdict.FIRST),
        (0.42, 0.58, Verdict.EVEN),
        (0.5 - EVEN, 0.55, Verdict.OPEN),
        (0.45, 0.5 + EVEN, Verdict.OPEN),
        (0.5, 0.9, Verdict.OPEN),
    ],
)
def test_what_an_interval_shows(low, high, found):
    assert verdict(Estimate((low + high) / 2, low, high)) is found
