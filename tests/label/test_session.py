"""What a person is asked and on which sides, and what the answers say: without a server."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.labels import Label
from fdpo_fast.data.pairs import Pair
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.label import results
from fdpo_fast.label.book import Book
from fdpo_fast.label.order import at_random, by_disagreement, disagreement, first_of, left_image, random_order
from fdpo_fast.label.questions import Asked, OfSource, beside, section
from fdpo_fast.label.session import Session, UnknownError
from tests.helpers.pictures import BLUE, RED, as_folders, as_jsonl, as_latents, as_pickapic, write

ASKED = [Asked(2 * n, f"row {n}", f"caption {n}", 1.0) for n in range(400)]


def questions(every=ASKED, models=None, scores=dict):
    def picture(id, image):
        return f"{id}/{image}".encode()

    return SimpleNamespace(every=every, name="some", models=models, scores=scores, picture=picture)


def session(path, by="ann", every=ASKED, seed=0):
    book = Book(path, by, every)
    asked = random_order(seed)(questions(every), book.labels)
    return Session(questions(every), asked, book, seed, lambda: "")


def test_sides_are_drawn_and_stay(tmp_path):
    ann, again, bob = (session(tmp_path / "x.jsonl", by) for by in ("ann", "ann", "bob"))
    sides = np.array([[who.left(one.id) for one in ASKED] for who in (ann, again, bob)])
    assert (sides[0] == sides[1]).all()
    assert abs(sides.mean(axis=1) - 0.5).max() < 4 * 0.5 / 20
    assert abs((sides[0] == sides[2]).mean() - 0.5) < 4 * 0.5 / 20  # another person's are others
    assert {left_image(seed, "ann", 2) for seed in range(20)} == {0, 1}


def test_a_picture_is_that_of_its_side(tmp_path):
    ann = session(tmp_path / "x.jsonl")
    for one in ASKED[:20]:
        left, right = (ann.picture(one.id, side) for side in ("left", "right"))
        assert left == f"{one.id}/{ann.left(one.id)}".encode()
        assert {left, right} == {f"{one.id}/0".encode(), f"{one.id}/1".encode()}


@pytest.mark.parametrize(("choice", "label"), [("left", 1.0), ("right", 0.0), ("tie", 0.5), ("skip", None)])
def test_an_answer_is_about_image_0(tmp_path, choice, label):
    ann = session(tmp_path / "x.jsonl")
    for one in ASKED[:20]:
        ann.answer(one.id, choice)
        turned = label if label is None or ann.left(one.id) == 0 else 1 - label
        assert ann.book.own[one.id].label == turned
        assert ann.book.own[one.id].more == {"left": ann.left(one.id)}


def test_everybody_is_asked_in_one_order_that_others_do_not_move():
    order = [one.id for one in at_random(ASKED, 0)]
    assert order != sorted(order)
    assert [one.id for one in at_random(ASKED[::-1], 0)] == order
    kept = [one for one in ASKED if one.id % 6]
    assert [one.id for one in at_random(kept, 0)] == [id for id in order if id % 6]
    assert [one.id for one in at_random(ASKED, 1)] != order


def test_it_goes_on_where_it_was_left(tmp_path):
    ann = session(tmp_path / "x.jsonl")
    state, seen = ann.state(), []
    for _ in range(5):
        seen.append(state["question"]["id"])
        ahead = state["next"]
        state = ann.answer(int(seen[-1]), "left")
        assert state["question"] == ahead
    assert len(set(seen)) == 5
    assert session(tmp_path / "x.jsonl").state() == state
    assert (state["done"], state["total"]) == (5, 400)
    assert session(tmp_path / "x.jsonl", "bob").state()["question"]["id"] == seen[0]


def test_undone_questions_come_again_the_last_first(tmp_path):
    ann = session(tmp_path / "x.jsonl")
    one, two, three = (ann.state()["question"]["id"], *(ann.answer(int(ann.state()["question"]["id"]), "tie")["question"]["id"] for _ in range(2)))  # noqa: E501  # fmt: skip
    state = ann.undo()
    assert (state["question"]["id"], state["next"]["id"], state["done"]) == (two, three, 1)
    state = ann.undo()
    assert (state["question"]["id"], state["next"]["id"], state["undo"]) == (one, two, False)
    assert ann.undo() == state


def test_an_answer_of_another_window_takes_the_place_of_the_first(tmp_path):
    ann = session(tmp_path / "x.jsonl")
    id = int(ann.state()["question"]["id"])
    first = ann.answer(id, "left")
    assert ann.answer(id, "right") == first
    assert len(ann.book.labels) == 1
    assert ann.book.own[id].label == ann.left(id)


@pytest.mark.parametrize(("id", "choice", "words"), [(1, "left", "no pair 1"), (0, "both", "no answer 'both'")])
def test_what_there_is_not_is_named(tmp_path, id, choice, words):
    ann = session(tmp_path / "x.jsonl")
    with pytest.raises(UnknownError, match=words):
        ann.answer(id, choice)
    with pytest.raises(UnknownError, match="no side 'up'"):
        ann.picture(0, "up")
    assert not ann.book.path.exists()


def test_scorers_disagree_where_both_are_sure():
    """By hand: of each scorer the root mean square is 2, and 200."""
    scores = {
        0: {"a": (3.0, 1.0), "b": (0.0, 200.0)},  # one against one
        2: {"a": (2.0, 0.0), "b": (200.0, 0.0)},  # none
        4: {"a": (1.0, -1.0), "b": (0.0, 20.0)},  # a tenth
        6: {"a": (1.0, 3.0)},
        8: {"b": (282.1347195933176, 0.0)},
    }
    found = disagreement(scores)
    assert found == pytest.approx({0: 1.0, 2: 0.0, 4: 0.1, 6: 0.0, 8: 0.0})
    assert [one.id for one in first_of(ASKED[:5], found, 0)][:2] == [0, 4]
    with pytest.raises(UserError, match="no pair has scores of two scorers"):
        disagreement({0: {"a": (1.0, 0.0)}})


def test_pairs_that_scorers_disagree_about_come_first(tmp_path):
    scores = {4: {"a": [1, 0], "b": [0, 1]}, 10: {"a": [1, 0], "b": [0, 3]}, 2: {"a": [1, 0], "b": [3, 0]}}
    scored = [Label(id, "", f"caption {id // 2}", 1.0, "a+b", {"scores": found}) for id, found in scores.items()]
    asked = by_disagreement(0, scored)(questions(), [])
    assert {one.id for one in asked[:2]} == {4, 10}
    assert asked[2].id == 2  # scored, though none disagree
    assert by_disagreement(0, None)(questions(), scored) == asked
    assert by_disagreement(0, None)(questions(scores=lambda: scores), scored[:0]) == asked
    assert sorted(asked) == sorted(ASKED)


@pytest.mark.parametrize("scores", [1, {"a": 1}, {"a": [1]}, {"a": [1, 2, 3]}, {"a": [1, "x"]}, {"a": [1, None]}])
def test_scores_that_are_none_are_named(scores):
    labels = [Label(4, "", "caption 2", 1.0, "a+b", {"scores": scores})]
    with pytest.raises(UserError, match="the scores of pair 4 by 'a\\+b' are"):
        by_disagreement(0, labels)(questions(), [])


def test_a_source_of_rankings_has_scores(tmp_path):
    """As `fdpo pairs` writes them; pair's ids are those of the reader, and image 0 is the one that is listed first."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(RED)
    record = {"images": ["0.jpg", "1.jpg", "2.jpg"], "caption": "x", "rank": [2, 1, 3]}
    scores = {"a": [1, 2, 0], "b": [5, 3, 4], "bad": [1, 2], "worse": "x"}
    rows = [record, record | {"scores": scores}, record | {"scores": [1, 2, 3]}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = OfSource(Data(source=str(tmp_path)))
    places = {one.id: one.place for one in found.every}
    assert {places[id]: own for id, own in found.scores().items()} == {
        "metadata.jsonl record 1 images 0 and 1": {"a": (1, 2), "b": (5, 3)},
        "metadata.jsonl record 1 images 0 and 2": {"a": (1, 0), "b": (5, 4)},
        "metadata.jsonl record 1 images 1 and 2": {"a": (2, 0), "b": (3, 4)},
    }
    part = OfSource(Data(source=str(tmp_path), max_rows=2))
    assert part.scores() == found.scores()
    (first, *_) = by_disagreement(0, None)(found, [])
    assert first.place == "metadata.jsonl record 1 images 0 and 1"


def test_judges_agreement_is_told(tmp_path):
    path = tmp_path / "x.jsonl"
    said = {"ann": [1, 1, 0, 0.5, None], "bob": [1, 0, 0, 0.5, 1], "cyd": [None, None, None, None, 1]}
    labels = [
        Label(2 * n, "", f"caption {n}", label, by) for by, given in said.items() for n, label in enumerate(given)
    ]
    labels.append(Label(2000, "", "of another source", 1.0, "bob"))
    path.write_text("".join(label.line() for label in labels))
    told = results.words(Book(path, "bob", ASKED), questions())
    # of four pairs three agree; by chance 2/4 * 1/4 + 1/4 * 2/4 + 1/4 * 1/4 = 5/16
    assert f"bob and ann agree on 75.0% of 4 pairs; Cohen's kappa is {(3 / 4 - 5 / 16) / (1 - 5 / 16):.2f}." in told
    assert "bob and cyd agree on 100.0% of 1 pairs; Cohen's kappa is not defined, as both say always the same." in told
    assert any(words.startswith("ann and the source agree on 50.0% of 4 pairs") for words in told)
    assert not any("ann and cyd" in words for words in told)
    assert results.heading(Book(path, "bob", ASKED), questions()) == "bob: 5 of 400 answered"


def test_of_two_models_who_is_preferred(tmp_path):
    ann = session(tmp_path / "x.jsonl")
    compared = questions(models=("base", "policy"))
    for one in ASKED[:40]:
        assert results.note(ann.book, compared) == "" or len(ann.book.own) >= 7
        ann.answer(one.id, "left" if ann.left(one.id) else "right")  # always the second's
    (told,) = (words for words in results.words(ann.book, compared) if words.startswith("ann prefers"))
    assert told.startswith("ann prefers policy to base in 100.0% [")
    assert "policy is preferred" in told
    note = results.note(ann.book, compared)
    assert "you may stop" in note
    assert "policy" not in note  # who goes on does so blindly


ROWS = [(f"caption {n}", RED, BLUE, label) for n, label in enumerate((1.0, 0.0, 0.5, 1.0))]
"""The first image is red; it is preferred, it is not, it is a tie, it is preferred."""


@pytest.mark.parametrize("form", [as_pickapic, as_jsonl, as_folders])
def test_images_have_the_numbers_of_the_source(tmp_path, form):
    found = OfSource(Data(source=str(form(tmp_path, ROWS))))
    labels = {one.caption: one.known for one in found.every}
    if form is as_folders:  # without an order, and without ties
        assert labels == {"caption 0": 1.0, "caption 1": 1.0, "caption 3": 1.0}
        images = {one.caption: found.picture(one.id, 0) for one in found.every}
        assert images == {"caption 0": RED, "caption 1": BLUE, "caption 3": RED}
    else:
        assert labels == {"caption 0": 1.0, "caption 1": 0.0, "caption 2": 0.5, "caption 3": 1.0}
        assert [found.picture(one.id, image) for one in found.every for image in (0, 1)] == [RED, BLUE] * 4
    assert found.refused == 0


@pytest.mark.parametrize("form", [as_pickapic, as_jsonl, as_folders])
def test_what_was_answered_is_what_is_trained_on(tmp_path, form):
    """Whatever the source's own labels are: red is preferred, then blue, then neither, and the last is skipped."""
    source, file = str(form(tmp_path, ROWS)), tmp_path / "x.jsonl"
    found = OfSource(Data(source=source))
    ann = Session(found, found.every, Book(file, "ann", found.every), 0, str)
    for number, one in enumerate(found.every):
        red = "left" if ann.picture(one.id, "left") == RED else "right"
        ann.answer(one.id, (red, ({"left", "right"} - {red}).pop(), "tie", "skip")[number])
    data = Data(source=source, labels=str(file), unlabelled="drop", ties="half")
    pairs = [pair for pair in open_source(data).read(0, 9) if isinstance(pair, Pair)]
    preferred = [(pair.id, pair.preferred.read(), pair.weight) for pair in pairs]
    ids = [one.id for one in found.every]
    expected = [(ids[0], RED, 1.0), (ids[1], BLUE, 1.0)]
    assert preferred[:2] == expected
    assert [weight for _, _, weight in preferred[2:]] == [0.5, 0.5]
    assert {content for _, content, _ in preferred[2:]} == {RED, BLUE}


def test_a_source_of_latents_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds latents, and a person can judge images alone"):
        OfSource(Data(source=str(as_latents(tmp_path, ROWS))))


def test_rows_without_a_pair_are_counted(tmp_path):
    source = write(tmp_path / "pairs.parquet", [*ROWS, ("x", RED, BLUE, float("nan"))])
    assert OfSource(Data(source=str(source))).refused == 1


def test_where_answers_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.pairs").mkdir()
    for source, file in {
        "my.pairs": "my.labels.jsonl",
        "owner/name": "name.labels.jsonl",
        "a*b": "a-b.labels.jsonl",
    }.items():
        assert beside(source, section(source, None)).name == file
    assert beside(str(tmp_path / "my.pairs"), Data(source="x")).parent == tmp_path
    assert beside(None, Data(source="x", labels="mine.jsonl")).name == "mine.jsonl"
