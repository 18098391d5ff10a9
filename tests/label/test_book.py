"""The file of answers: what is written, taken back and left alone, and what a kill or a full disk leaves."""

import errno
import os
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.labels import Label, read_labels
from fdpo_fast.label.book import Book, alone
from fdpo_fast.label.questions import Asked
from tests.helpers.labelling import lines
from tests.helpers.power import recorded

ASKED = [Asked(2 * n, f"row {n}", f"caption {n} \u2028 größe") for n in range(12)]
BOB = [Label(one.id, one.place, one.caption, 0.25, "bob", {"note": "mine"}) for one in ASKED[:3]]


def book(folder, by="ann"):
    return Book(folder / "x.labels.jsonl", by, ASKED)


def write(folder, labels):
    path = folder / "x.labels.jsonl"
    path.write_text("".join(label.line() for label in labels), encoding="utf-8")
    return path


def test_answers_are_lines(tmp_path):
    first = book(tmp_path)
    first.add(ASKED[3], 1.0, 0)
    first.add(ASKED[1], None, 1)
    assert lines(first.path) == [
        {"id": 6, "place": "row 3", "caption": ASKED[3].caption, "label": 1.0, "by": "ann", "left": 0},
        {"id": 2, "place": "row 1", "caption": ASKED[1].caption, "label": None, "by": "ann", "left": 1},
    ]
    assert [label.id for label in read_labels(first.path)] == [6, 2]


def test_an_undo_changes_one_line(tmp_path):
    path = write(tmp_path, BOB)
    ann = book(tmp_path)
    for asked in ASKED[:5]:
        ann.add(asked, 0.5, 0)
    before = path.read_text(encoding="utf-8").split("\n")
    assert book(tmp_path).undo() == ASKED[4].id  # a command that was started anew knows what the last answer was
    assert path.read_text(encoding="utf-8").split("\n") == before[:-2] + before[-1:]
    book(tmp_path).add(ASKED[4], 1.0, 0)
    after = path.read_text(encoding="utf-8").split("\n")
    assert [a == b for a, b in zip(before, after, strict=True)] == [True] * 7 + [False, True]


def test_other_judges_lines_stay(tmp_path):
    path = write(tmp_path, BOB)
    ann = book(tmp_path)
    assert ann.undo() is None  # bob's answers are not hers
    ann.add(ASKED[0], 1.0, 0)
    ann.undo()
    assert path.read_text(encoding="utf-8") == "".join(label.line() for label in BOB)


ACTIONS = st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 11), st.sampled_from([0.0, 0.5, 1.0, None]))))


@given(ACTIONS)
@settings(max_examples=30, deadline=None)
def test_the_file_says_what_was_answered(tmp_path_factory, actions):
    """A dictionary is the oracle, whose last key an undo takes out."""
    folder, truth = tmp_path_factory.mktemp("book"), {}
    ann = book(folder)
    for action in actions:
        if action is None:
            assert ann.undo() == (truth.popitem()[0] if truth else None)
        else:
            number, label = action
            ann.add(ASKED[number], label, 0)
            truth.pop(ASKED[number].id, None)
            truth[ASKED[number].id] = label
        assert {id: label.label for id, label in book(folder).own.items()} == truth


def test_a_kill_leaves_an_answer_or_none(tmp_path):
    """And a power cut: at each operation on files, what is on the disk is the file before the answer or after it."""
    with recorded(tmp_path) as record:
        ann = book(tmp_path)
        ann.add(ASKED[2], 0.0, 0)
        before = ann.path.read_bytes()
        record.states.clear()
        ann.add(ASKED[5], 1.0, 0)
    after = ann.path.read_bytes()
    found = {dict(state).get(ann.path.name) for state in record.states}
    assert before in found
    assert found <= {before, after}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_cannot_be_written_is_not_taken_for_answered(tmp_path, call):
    ann = book(tmp_path)
    ann.add(ASKED[0], 1.0, 0)
    with patch(f"os.{call}", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
        with pytest.raises(OSError, match="No space"):
            ann.add(ASKED[1], 0.0, 0)
        with pytest.raises(OSError, match="No space"):
            ann.add(ASKED[0], 0.0, 0)
        with pytest.raises(OSError, match="No space"):
            ann.undo()
    assert {id: label.label for id, label in ann.own.items()} == {0: 1.0}
    assert [line["label"] for line in lines(ann.path)] == [1.0]
    ann.add(ASKED[1], 0.0, 0)
    assert [line["label"] for line in lines(ann.path)] == [1.0, 0.0]
    assert [path.name for path in tmp_path.iterdir()] == [ann.path.name]


def test_a_file_of_another_source_is_refused(tmp_path):
    write(tmp_path, [Label(0, "row 0", "another caption", 1.0, "bob")])
    with pytest.raises(
        UserError, match=r"is of another source: pair 0 has the caption .* name another file by --labels"
    ):
        book(tmp_path)


def test_a_person_has_another_name_than_scorers(tmp_path):
    write(tmp_path, [Label(0, "row 0", ASKED[0].caption, 1.0, "ann", {"scores": {"clip": [1, 2]}})])
    with pytest.raises(UserError, match="'ann' is the name of scorers"):
        book(tmp_path)


def test_an_empty_file_is_a_beginning(tmp_path):
    ann = book(tmp_path)
    ann.add(ASKED[0], 1.0, 0)
    ann.undo()
    assert ann.path.read_bytes() == b""
    assert book(tmp_path).own == {}


def test_a_file_that_another_program_has_changed_stays_as_it_is(tmp_path):
    ann = book(tmp_path)
    ann.add(ASKED[0], 1.0, 0)
    write(tmp_path, BOB)
    for change in (lambda: ann.add(ASKED[1], 1.0, 0), ann.undo):
        with pytest.raises(UserError, match="has been changed by another program: start this command again"):
            change()
    assert ann.path.read_text(encoding="utf-8") == "".join(label.line() for label in BOB)
    ann.path.unlink()  # what is gone is written again
    ann.add(ASKED[1], 1.0, 0)
    assert [line["id"] for line in lines(ann.path)] == [0, 2]


def test_one_process_labels_a_file(tmp_path):
    path = tmp_path / "new/x.labels.jsonl"
    with alone(path):
        with (
            pytest.raises(UserError, match=r"another `fdpo label` is at work on \S+x\.labels\.jsonl: end it"),
            alone(path),
        ):
            pass
        with alone(path.with_name("y.labels.jsonl")):  # beside it another
            pass
    with alone(path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot be written \(.*\): name another file by --labels"),
        alone(Path(tmp_path / "file/x.jsonl")),
    ):
        pass
