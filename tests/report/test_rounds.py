"""What is said of rounds: which scores rise, by those that rank pairs and those that do not."""

import numpy as np
import pytest

from fdpo_fast.config.evaluation import Rounds
from fdpo_fast.evaluate.score import Report
from fdpo_fast.report.rounds import verdict

RANKING, OTHER = "mine:ranking", "mine:other"
TAKE = "Behind round-01 none rises but those that rank the pairs: take it, unless they are all that counts."
NONE = "Of the scorers that rank no pairs none rises in any round: what is gained is what ranks alone."
ALONE = "Nothing judges the rounds but what ranks their pairs, which a policy learns to please: add another scorer"


def told(**steps):
    """The verdict where each scorer changes by a step a round, give or take a tenth of 1, from image to image."""
    rng = np.random.default_rng(0)
    report = Report(8, 5, 0, "images")
    for name, changes in steps.items():
        scores = rng.normal(size=(5, 8)) * 30  # images differ by more than rounds do
        own = {"base": scores}
        for number, change in enumerate(changes, 1):
            scores = scores + change + 0.1 * rng.normal(size=scores.shape)
            own[f"round-{number:02d}"] = scores
        report.scores[f"mine:{name}"] = own
    return list(verdict(Rounds(prompts=["a"], scorers=[{"name": RANKING}]), report))


@pytest.mark.parametrize(
    ("ranking", "other", "last"),
    [
        ((1, 1), (1, 0), TAKE),
        ((1, 1), (1, -1), TAKE),
        ((1, 1), (0, 0), NONE),
        ((1, 1), (-1, 0), NONE),
        ((0, 0), (1, 1), None),
        ((1, 1), (0, 1), None),
    ],
)
def test_the_round_to_take_is_the_last_in_which_another_scorer_rises(ranking, other, last):
    said = told(ranking=ranking, other=other)
    assert said[2:] == ([last] if last else [])
    ways = {1: "rises", 0: "cannot be told to have changed", -1: "falls"}
    for number, line in enumerate(said[:2]):
        before = "base" if number == 0 else "round-01"
        assert line.startswith(
            f"round-{number + 1:02d} beside {before}, image by image: {RANKING} {ways[ranking[number]]}"
        )
        assert f"; {OTHER} {ways[other[number]]}: " in line


def test_a_scorer_that_ranks_is_no_judge():
    said = told(ranking=(1, 1))
    assert len(said) == 3
    assert said[-1].startswith(ALONE)


def test_without_any_scorer_nothing_is_said_of_scores():
    assert [line[: len(ALONE)] for line in told()] == [ALONE]
