"""From scores to labels, ranks and pairs: against the definition in plain Python, image by image."""

from itertools import combinations
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast.config.evaluation import Pairs
from fdpo_fast.evaluate.feedback.combine import Combination

SCORE = st.integers(-40, 40).map(lambda n: n / 8) | st.floats(-5, 5)
"""Those of the first kind tie often, and their gaps are exact."""


@st.composite
def panels(draw, most=3, images=5, **fixed):
    """A combination of some judges, and their scores [judges, captions, images]."""
    count, captions, each = draw(st.integers(1, most)), draw(st.integers(1, 4)), draw(st.integers(2, images))
    names = tuple("abc"[:count])
    settings = {"combine": draw(st.sampled_from(["mean", "majority"])), "tie_below": draw(st.sampled_from([0.0, 0.5]))}
    settings["weights"] = {
        name: draw(st.sampled_from([0.5, 1.0, 2.0])) for name in draw(st.sets(st.sampled_from(names)))
    }
    scores = draw(st.lists(SCORE, min_size=count * captions * each, max_size=count * captions * each))
    return Combination(Pairs(**settings | fixed), names), np.array(scores).reshape(count, captions, each)


def standardised(combination, scores):
    """Nested lists [judges][captions][images]."""
    if len(combination.judges) == 1:
        return scores.tolist()
    made = []
    for own in scores.tolist():
        every = [score for caption in own for score in caption]
        mean, spread = fmean(every), pstdev(every)
        made.append([[(score - mean) / spread if spread else 0.0 for score in caption] for caption in own])
    return made


def vote(settings, gap):
    return 0.5 if gap == 0 or abs(gap) < settings.tie_below else float(gap > 0)


def share(combination, first, second):
    """What is said of two images with a score of each judge."""
    settings = combination.settings
    weights = [settings.weights.get(name, 1.0) for name in combination.judges]
    if settings.combine == "majority":
        votes = [vote(settings, a - b) for a, b in zip(first, second, strict=True)]
        return sum(w * v for w, v in zip(weights, votes, strict=True)) / sum(weights)
    one, other = (sum(w * s for w, s in zip(weights, own, strict=True)) / sum(weights) for own in (first, second))
    return vote(settings, one - other)


def near_a_tie(combination, scores):
    """Whether rounding decides about a tie, of which two ways of computing need not agree."""
    settings, z = combination.settings, np.array(standardised(combination, scores))
    weights = np.array([settings.weights.get(name, 1.0) for name in combination.judges])
    of_judges = z if settings.combine == "majority" else np.tensordot(weights, z, 1)[None] / weights.sum()
    gaps = np.abs(of_judges[..., :, None] - of_judges[..., None, :])
    return bool(((np.abs(gaps - settings.tie_below) < 1e-9) & (gaps != settings.tie_below) & (gaps != 0)).any())


@given(panels())
def test_standardised_scores(panel):
    combination, scores = panel
    expected = standardised(combination, scores)
    spreads = scores.reshape(len(scores), -1).std(1)
    if ((spreads == 0) | (spreads > 1e-6)).all():  # what differs in its last bits alone is anybody's guess
        np.testing.assert_allclose(combination.standardised(scores), expected, atol=1e-6)


@given(panels())
def test_labels_are_shares_for_the_first_image(panel):
    combination, scores = panel
    z = combination.standardised(scores)
    found = combination.labels(z[:, :, 0], z[:, :, 1])
    assert found.min() >= 0
    assert found.max() <= 1
    for caption, label in enumerate(found):
        first, second = z[:, caption, 0].tolist(), z[:, caption, 1].tolist()
        if not near_a_tie(combination, scores):
            assert label == pytest.approx(share(combination, first, second))
    np.testing.assert_allclose(combination.labels(z[:, :, 1], z[:, :, 0]), 1 - found)


@given(panels())
def test_ranks_order_the_images_as_the_judges_do(panel):
    combination, scores = panel
    z = combination.standardised(scores)
    for caption in range(scores.shape[1]):
        own = z[:, caption]
        values = combination.values(own)
        ranks = combination.ranks(values)
        assert sorted(set(ranks.tolist())) == list(range(1, len(set(ranks.tolist())) + 1))
        if near_a_tie(combination, scores):
            continue
        said = {(i, j): share(combination, own[:, i].tolist(), own[:, j].tolist())
                for i in range(len(ranks)) for j in range(len(ranks)) if i != j}  # fmt: skip
        if combination.settings.combine == "majority":
            beats = [sum((said[i, j] > 0.5) - (said[i, j] < 0.5) for j in range(len(ranks)) if j != i)
                     for i in range(len(ranks))]  # fmt: skip
            assert ranks.tolist() == [1 + len({other for other in beats if other > one}) for one in beats]
            continue
        for i, j in combinations(range(len(ranks)), 2):
            linked = _linked(said, i, j, len(ranks))
            assert (ranks[i] == ranks[j]) == linked
            if not linked:
                assert (ranks[i] < ranks[j]) == (said[i, j] == 1)


def _linked(said, start, end, count):
    """Whether ties lead from one image to another."""
    reached, edge = {start}, [start]
    while edge:
        one = edge.pop()
        more = {other for other in range(count) if other != one and said[one, other] == 0.5} - reached
        reached |= more
        edge += more
    return end in reached


@given(panels(), st.sampled_from(["best_worst", "adjacent", "all"]))
def test_the_images_of_each_record(panel, which):
    combination, scores = panel
    combination = Combination(combination.settings.replace({"which": which}), combination.judges)
    values = combination.values(combination.standardised(scores)[:, 0])
    ranks, chosen = combination.ranks(values), list(combination.chosen(values))
    count = len(values)
    assert [len(own) for own in chosen] == {"best_worst": [2], "adjacent": [2] * (count - 1), "all": [count]}[which]
    for own in chosen:
        assert len(set(own)) == len(own)
        assert [ranks[image] for image in own] == sorted(ranks[image] for image in own)
    if which == "best_worst":
        assert values[chosen[0][0]] == max(values)
        assert values[chosen[0][1]] == min(values)
    if which == "adjacent":
        assert len({image for own in chosen for image in own}) == count


def test_a_judge_who_says_the_same_of_all_has_no_say():
    """Also where rounding gives equal scores a spread, and where that of unequal ones is too small to divide by."""
    combination = Combination(Pairs(), ("a", "b"))
    for flat in ([0.1] * 3, [0.0, 0.0, 5e-324]):
        scores = np.array([[flat], [[1.0, 2.0, 4.0]]])
        z = combination.standardised(scores)
        np.testing.assert_array_equal(z[0], 0)
        assert combination.ranks(combination.values(z[:, 0])).tolist() == [3, 2, 1]


def test_images_that_beat_one_another_in_a_circle_are_equal():
    combination = Combination(Pairs(combine="majority"), ("a", "b", "c"))
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [1.0, 3.0, 2.0, 0.0], [2.0, 1.0, 3.0, 0.0]])
    assert combination.ranks(combination.values(scores)).tolist() == [1, 1, 1, 2]


def test_a_chain_of_ties_is_one_rank():
    combination = Combination(Pairs(tie_below=0.5), ("a",))
    values = combination.values(np.array([[0.0, 0.75, 0.375, 1.25, 2.0]]))
    assert combination.ranks(values).tolist() == [3, 3, 3, 2, 1]


def test_weights_decide_between_two_judges():
    first, second = np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])
    for weight, label in ((0.5, 0.0), (1.0, 0.5), (2.0, 1.0)):
        combination = Combination(Pairs(weights={"a": weight}), ("a", "b"))
        assert combination.labels(first, second).tolist() == [label]
        majority = Combination(Pairs(weights={"a": weight}, combine="majority"), ("a", "b"))
        assert majority.labels(first, second).tolist() == [weight / (1 + weight)]


def test_the_score_of_one_judge_has_its_own_unit():
    alone, two = (Combination(Pairs(tie_below=2.0), names) for names in (("a",), ("a", "b")))
    scores = np.array([[[20.0, 21.0]], [[20.0, 21.0]]])
    assert alone.ranks(alone.values(alone.standardised(scores[:1])[:, 0])).tolist() == [1, 1]
    assert two.ranks(two.values(two.standardised(scores)[:, 0])).tolist() == [2, 1]  # two standard deviations apart
