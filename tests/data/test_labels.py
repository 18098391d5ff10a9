"""From two labels to pairs: what is preferred, and what becomes of ties and shares of votes."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import TIE, Picture, Rejected, Rules, compared, kind_of, number
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.data.reading import UnusableError
from tests.helpers.pictures import BLUE, RED, as_jsonl, write

A, B = Picture("a", RED), Picture("b", BLUE)


def judged(labels, sides=(A, B), caption="x", **rules):
    return list(compared(3, 6, "row 3", caption, sides, labels, Rules(**rules)))


def told(pairs):
    """Which image is preferred to which, how much that weighs, and whether that is the order of the source."""
    return [(pair.preferred.name + pair.dispreferred.name, pytest.approx(pair.weight), pair.first) for pair in pairs]


@pytest.mark.parametrize("votes", ["decide", "weight", "conservative"])
@pytest.mark.parametrize(
    "labels", [(1, 0), (True, False), ("1", "0"), ("true", "False"), (3, 0), (-1, -2), (0.9, 0.0), (1.0, -0.5)]
)
def test_what_is_no_share_of_votes_decides(votes, labels):
    assert told(judged(labels, votes=votes)) == [("ab", 1.0, True)]
    assert told(judged(labels[::-1], votes=votes)) == [("ba", 1.0, False)]


@pytest.mark.parametrize("labels", [(3, 1), (0.75, 0.25), ("66", "22"), (0.6, 0.2), (Decimal("0.75"), Decimal("0.25"))])
def test_numbers_of_votes_are_shares_of_their_sum(labels):
    assert told(judged(labels)) == [("ab", 1.0, True)]
    assert told(judged(labels, votes="weight")) == [("ab", 0.5, True)]
    assert told(judged(labels, votes="conservative")) == [("ab", 0.75, True), ("ba", 0.25, None)]


def test_scores_and_ranks_are_no_votes():
    (pair,) = compared(3, 6, "row 3", "x", (A, B), (21.3, 20.1), Rules(votes="weight"), votes=False)
    assert pair.weight == 1


@given(share=st.floats(0.501, 0.999))
def test_shares_of_votes(share):
    labels = (share, 1 - share)
    assert told(judged(labels)) == [("ab", 1.0, True)]
    assert told(judged(labels, votes="weight")) == [("ab", 2 * share - 1, True)]
    both = judged(labels, votes="conservative")
    assert told(both) == [("ab", share, True), ("ba", 1 - share, None)]
    assert sum(pair.weight for pair in both) == pytest.approx(1)
    assert [pair.id for pair in both] == [6, 7]
    assert {(pair.row, pair.place, pair.caption) for pair in both} == {(3, "row 3", "x")}
    assert told(judged(labels[::-1], votes="conservative")) == [("ba", share, False), ("ab", 1 - share, None)]


@pytest.mark.parametrize("votes", ["decide", "weight", "conservative"])
@pytest.mark.parametrize("labels", [(0.5, 0.5), (1, 1), (0, 0), (-3, "-3")])
def test_ties_do_not_depend_on_votes(votes, labels):
    (rejected,) = judged(labels, votes=votes)
    assert rejected == Rejected("row 3", TIE)
    assert rejected.row == 3
    half = judged(labels, votes=votes, ties="half")
    assert told(half) == [("ab", 0.5, None), ("ba", 0.5, None)]
    assert [pair.id for pair in half] == [6, 7]


@pytest.mark.parametrize("label", [None, "good", float("nan"), float("inf"), [1], {}, 10**400])
def test_what_is_no_label(label):
    (rejected,) = judged((label, 0), ties="half")
    kind, found = rejected.reason.split(": ", 1)
    assert kind == "no valid label"
    assert found.startswith("found ")
    assert found.endswith(" and 0")
    assert len(found) < 80
    assert number(label) is None
    assert rejected.pictures == (A, B)


def test_the_reason_is_the_first_that_is_found():
    cases = [
        (judged((1, 0), caption=None), "no caption: found None"),
        (judged((1, 0), caption=5), "no caption: found 5"),
        (judged((1, 0), caption=UnusableError("no caption: found the keys a")), "no caption: found the keys a"),
        (judged((1, 0), caption="ab\ud83d"), "the caption is no text: it has half a letter, \\ud83d, at 2"),
        (judged((1, 0), sides=(A, "an image is missing: b.jpg is not in .")), "an image is missing: b.jpg is not in ."),
        (judged((1, 1), sides=("an image is missing: no path", B)), "an image is missing: no path"),  # before a tie
        (judged((None, 1), sides=("no path", B), caption=None), "no valid label: found None and 1"),
    ]
    assert [(row.reason, row.place, row.row) for (row,), _ in cases] == [(words, "row 3", 3) for _, words in cases]
    assert [row.pictures for (row,), _ in cases][4:6] == [(A,), (B,)]
    assert [kind_of(words) for _, words in cases[:2]] == ["no caption"] * 2


@pytest.mark.parametrize("make", [lambda folder, rows: write(folder / "a.parquet", rows), as_jsonl])
@pytest.mark.parametrize(
    ("votes", "weights"),
    [("decide", [1, 1, 1]), ("weight", [1, 0.4, 0.6]), ("conservative", [1, 0.7, 0.3, 0.8, 0.2])],
)
def test_readers_hand_votes_over(tmp_path, make, votes, weights):
    rows = [("a", RED, BLUE, 1.0), ("b", RED, BLUE, 0.7), ("c", RED, BLUE, 0.2), ("d", RED, BLUE, 0.5)]
    data = Data(source=str(make(tmp_path, rows)), votes=votes)
    source = open_source(data)
    *pairs, tie = source.read(0, len(source))
    assert [pair.weight for pair in pairs] == pytest.approx(weights)
    assert tie.reason == TIE
    assert len({pair.id for pair in pairs}) == len(weights)
    by_caption = {pair.caption: pair for pair in reversed(pairs)}
    assert [by_caption[caption].preferred.read() == RED for caption in "abc"] == [True, True, False]
    assert open_source(data.replace({"votes": "decide"})).identity() != source.identity() or votes == "decide"


@pytest.mark.parametrize(
    ("said", "weight"),
    [
        ({"choice_dist": [12, 4]}, 0.5),
        ({"choice_dist": [4, 12], "confidence": 0.9}, 0.5),  # the keys say who is preferred
        ({"confidence": 0.75}, 0.5),
        ({}, 1.0),
        ({"confidence": 0}, 1.0),
        ({"choice_dist": [5, 5], "confidence": None}, 1.0),
    ],
)
def test_votes_beside_two_images_in_order(tmp_path, said, weight):
    for name, content in (("a.jpg", RED), ("b.jpg", BLUE)):
        (tmp_path / name).write_bytes(content)
    record = {"prompt": "x", "path1": "a.jpg", "path2": "b.jpg"} | said
    (tmp_path / "r.json").write_text(json.dumps([record]))
    source = open_source(Data(source=str(tmp_path / "r.json"), votes="weight"))
    (pair,) = source.read(0, 1)
    assert (pair.preferred.name, pair.weight, pair.first) == ("a.jpg", weight, None)
