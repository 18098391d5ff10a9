"""Files of labels: what is read and refused, what becomes of a source that has one, and how far judges agree."""

import json
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.check import examine
from fdpo_fast.data.labels import Label, agreement, questions, read_labels, to_be_judged, votes
from fdpo_fast.data.pairs import TIE, UNLABELLED, Pair, Picture, Rejected
from fdpo_fast.data.readers.detect import Spread, open_source
from tests.helpers.pictures import FORMATS, as_folders, as_jsonl, as_latents, as_pickapic, difficult_rows, noisy_jpeg

RULES = [{"ties": ties, "votes": how} for ties in ("drop", "half") for how in ("decide", "weight", "conservative")]
EXTRA = {"scores": {"clip": [21.0, 20.5]}}


def rows_of(labels):
    return [(f"a {row}", noisy_jpeg(2 * row), noisy_jpeg(2 * row + 1), label) for row, label in enumerate(labels)]


def written(path, labels):
    path.write_text("".join(label.line() for label in labels), encoding="utf-8")
    return str(path)


def judged(data):
    """What a configuration's pairs ask, in their order."""
    source = open_source(to_be_judged(data))
    return list(questions(source.read(0, len(source))))


def answers(data, labels, by="alice"):
    """A line for each of the first pairs of a source."""
    return [
        Label(one.id, one.place, one.caption, label, by, EXTRA)
        for one, label in zip(judged(data), labels, strict=False)
    ]


def read(data):
    source = open_source(data)
    return list(source.read(0, len(source)))


def told(items):
    """What tells items apart, without what a picture was like when its file was looked at."""
    sides = [(side.name, side.read()) if isinstance(side, Picture) else None
             for item in items if isinstance(item, Pair) for side in (item.preferred, item.dispreferred)]  # fmt: skip
    own = [(item.id, item.weight, item.first, item.row, item.text) if isinstance(item, Pair) else item.reason
           for item in items]  # fmt: skip
    return [item.place for item in items], own, sides


@given(
    id=st.integers(0, 2**62).map(lambda n: 2 * (n // 2)),
    words=st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]))] * 3),
    label=st.none() | st.floats(0, 1),
)
def test_a_line_is_read_as_it_was_written(tmp_path_factory, id, words, label):
    place, caption, by = words
    line = Label(id, place, caption, label, f"by {by}", EXTRA).line()
    assert line.count("\n") == 1
    path = tmp_path_factory.mktemp("labels") / "labels.jsonl"
    path.write_text(line, encoding="utf-8", newline="")
    assert read_labels(path) == [Label(id, place, caption, label, f"by {by}", EXTRA)]


GOOD = {"id": 4, "place": "row 2", "caption": "a cat", "label": 1, "by": "alice"}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "holds no label"),
        ([GOOD, "{"], "is broken in line 2: Expecting property name"),
        ([GOOD, [1]], r"is broken in line 2: found \[1\] in place of an object"),
        ([{key: GOOD[key] for key in ("id", "caption", "by")}], "line 1: it has no 'label'"),
        ([GOOD | {"id": 3}], "'id' is 3, and is to be that of a pair, a whole even number"),
        ([GOOD | {"id": True}], "'id' is True"),
        ([GOOD | {"id": 4.0}], "'id' is 4.0"),
        ([GOOD | {"id": -2}], "'id' is -2"),
        ([GOOD | {"label": 1.5}], "'label' is 1.5, and is to be a number from 0 to 1, or null"),
        ([GOOD | {"label": "1"}], "'label' is '1'"),
        ([GOOD | {"label": True}], "'label' is True"),
        ([GOOD | {"label": float("nan")}], "'label' is nan"),
        ([GOOD | {"caption": None}], "no caption: found None"),
        ([GOOD | {"by": " "}], "'by' is ' ', and is to name who judged"),
        ([GOOD, "", GOOD | {"label": 0}], "two labels of pair 4 by 'alice', in the lines 1 and 3: remove one"),
        ([GOOD, GOOD | {"by": "bob", "caption": "a dog"}], "two captions of pair 4, in the lines 1 and 2"),
        (["\udcff"], "byte 0xff at 0 is not UTF-8"),
    ],
)
def test_what_is_no_file_of_labels(tmp_path, lines, sentence):
    path = tmp_path / "labels.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=sentence) as error:
        read_labels(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"the file of labels .*none\.jsonl does not exist"):
        open_source(Data(source=str(as_jsonl(tmp_path, rows_of([1.0]))), labels=str(tmp_path / "none.jsonl")))


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(rules.values()))
@pytest.mark.parametrize("name", FORMATS)
def test_pairs_without_a_label_stay_as_they_are(tmp_path, name, rules):
    data = Data(source=str(FORMATS[name](tmp_path, difficult_rows(11))), **rules)
    labels = written(tmp_path / "labels.jsonl", answers(data, [None] * 99))
    assert told(read(data.replace({"labels": labels}))) == told(read(data))


@given(votes=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=5))
def test_votes_without_a_label_stay_as_they_are(tmp_path_factory, votes):
    root = as_jsonl(tmp_path_factory.mktemp("pairs"), rows_of([0.5] * len(votes)))
    records = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    changed = [
        record | dict(zip(("prefer_0", "prefer_1"), vote, strict=True))
        for record, vote in zip(records, votes, strict=True)
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, changed)))
    for rules in RULES:
        data = Data(source=str(root), **rules)
        labels = written(root.parent / "labels.jsonl", answers(data, [None] * 99))
        assert told(read(data.replace({"labels": labels}))) == told(read(data))


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(rules.values()))
def test_labels_are_read_as_those_of_a_source(tmp_path, rules):
    """A file's labels of pairs labelled otherwise are what the pairs with these labels of their own are."""
    labels = [1.0, 0.0, 0.5, 0.71, 0.25, 1.0, 0.5]
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    others = [0.0, 0.5, 1.0, 0.5, 0.9, 0.0, 0.5]
    files = [as_pickapic(folder, rows_of(own)) for folder, own in zip(folders, (others, labels), strict=True)]
    source, wanted = (Data(source=str(file), **rules) for file in files)
    file = written(tmp_path / "labels.jsonl", answers(source, labels))
    assert told(read(source.replace({"labels": file}))) == told(read(wanted))


def test_a_format_without_an_order_keeps_none(tmp_path):
    data = Data(source=str(as_folders(tmp_path, rows_of([1.0, 1.0]))))
    file = written(tmp_path / "labels.jsonl", answers(data, [0.0, 0.9]))
    one, other = read(data.replace({"labels": file, "votes": "conservative"}))[:2]
    assert (one.preferred.name, one.dispreferred.name, one.first, one.weight) == ("l/000.jpg", "w/000.jpg", None, 1.0)
    assert (other.preferred.name, other.first, other.weight) == ("w/001.jpg", None, 0.9)


def test_image_0_does_not_depend_on_labels(tmp_path):
    labels = [1.0, 0.0, 0.5]
    data = Data(source=str(as_pickapic(tmp_path, rows_of(labels))))
    before = judged(data)
    assert [one.label for one in before] == labels
    file = written(tmp_path / "labels.jsonl", answers(data, [0.0, 1.0, 1.0]))
    assert judged(data.replace({"labels": file, "unlabelled": "drop"})) == before
    for row, one in enumerate(before):
        assert [side.read() for side in one.images] == [noisy_jpeg(2 * row), noisy_jpeg(2 * row + 1)]


def test_judges_are_averaged_and_skips_count_for_nothing(tmp_path):
    data = Data(source=str(as_pickapic(tmp_path, rows_of([1.0] * 4))), votes="conservative", ties="half")
    said = [("alice", [1.0, 1.0, None, None]), ("bob", [0.0, 1.0, 0.0, None]), ("clip", [0.0, 0.75, 0.5, None])]
    labels = [label for by, shares in said for label in answers(data, shares, by)]
    assert {id: vote.label for id, vote in votes(labels).items()} == {0: 1 / 3, 2: 2.75 / 3, 4: 0.25}
    file = written(tmp_path / "labels.jsonl", labels)
    pairs = read(data.replace({"labels": file}))
    found = {pair.id: (pytest.approx(pair.weight), pair.first) for pair in pairs}
    assert found == {0: (2 / 3, False), 1: (1 / 3, None), 2: (2.75 / 3, True), 3: (0.25 / 3, None),
                     4: (0.75, False), 5: (0.25, None), 6: (1.0, True)}  # fmt: skip


def test_pairs_without_a_label_are_dropped(tmp_path):
    data = Data(source=str(as_pickapic(tmp_path, rows_of([1.0, 0.5, 0.0]))), unlabelled="drop", labels="x", ties="half")
    file = written(tmp_path / "labels.jsonl", answers(data, [None, 0.0]))
    labelled = data.replace({"labels": file})
    first, kept, last = read(labelled)
    assert [row.reason for row in (first, last)] == [UNLABELLED] * 2
    assert isinstance(first, Rejected)
    assert (kept.id, kept.first) == (2, False)
    findings, _ = examine([first, kept, last], labelled, 3)
    assert (findings.pairs, findings.unlabelled, findings.refused) == (1, 2, [])
    with pytest.raises(UserError, match=r"data\.unlabelled 'drop' needs data\.labels"):
        Data(source="x").replace({"unlabelled": "drop"})


def test_labels_of_another_source_are_refused(tmp_path):
    data = Data(source=str(as_pickapic(tmp_path, rows_of([1.0, 0.0]))))
    good, bad = answers(data, [1.0, 0.0])
    file = written(tmp_path / "labels.jsonl", [good, Label(bad.id, bad.place, "a dog", 1.0, "alice")])
    with pytest.raises(UserError, match=r"is of another source: pair 2 \(.*\) has the caption 'a 1' here and 'a dog'"):
        read(data.replace({"labels": file}))


def test_caches_know_the_labels(tmp_path):
    data = Data(source=str(as_pickapic(tmp_path, rows_of([1.0, 0.0]))))
    identities = [open_source(data).identity()]
    for labels in ([1.0, 0.0], [1.0, 1.0], [1.0]):
        file = written(tmp_path / "labels.jsonl", answers(data, labels))
        changed = data.replace({"labels": file})
        identities += [open_source(changed.replace(rule)).identity() for rule in ({}, {"unlabelled": "drop"})]
        identities += [open_source(changed.replace({"ties": "half"})).identity()]
    assert len({json.dumps(one) for one in identities}) == len(identities) == 10
    again = written(tmp_path / "again.jsonl", answers(data, [1.0], "bob"))  # who judged is no matter
    assert open_source(data.replace({"labels": again})).identity() == open_source(changed).identity()


def test_a_part_of_a_source_and_ready_embeddings(tmp_path):
    path = as_latents(tmp_path, [(f"a {i % 3}", b"", b"", 1.0) for i in range(40)], {"prompt_embeds": (4, 8)})
    data = Data(source=str(path))
    labelled = data.replace({"labels": written(tmp_path / "labels.jsonl", answers(data, [0.0] * 99)), "max_rows": 16})
    source = open_source(labelled)
    assert isinstance(source, Spread)
    assert {pair.first for pair in source.read(0, 16)} == {False}
    plain = open_source(data.replace({"max_rows": 16}))
    assert [pair.id for pair in source.read(0, 16)] == [pair.id for pair in plain.read(0, 16)]
    assert [pair.text for pair in source.read(0, 16)] == [pair.text for pair in plain.read(0, 16)]
    assert source.embedded == plain.embedded == {"prompt_embeds": (4, 8)}
    for (row, caption, values), (own_row, own, others) in zip(
        source.embeddings(0, 16), plain.embeddings(0, 16), strict=True
    ):
        assert (row, caption) == (own_row, own)
        np.testing.assert_array_equal(values["prompt_embeds"], others["prompt_embeds"])


def test_a_tie_is_decided(tmp_path):
    data = Data(source=str(as_pickapic(tmp_path, rows_of([0.5, 1.0]))))
    assert [getattr(row, "reason", None) for row in read(data)] == [TIE, None]
    file = written(tmp_path / "labels.jsonl", answers(data, [1.0, 0.5]))
    first, second = read(data.replace({"labels": file}))
    assert (first.first, first.weight, second.reason) == (True, 1.0, TIE)


SHARES = st.sampled_from([0.0, 0.2, 0.5, 0.71, 1.0])


@given(labels=st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=40))
def test_agreement_is_that_of_scikit_learn(labels):
    ours, theirs = ([pair[side] for pair in labels] for side in (0, 1))
    found = agreement(ours, theirs)
    one, other = (np.sign(np.array(each) - 0.5) for each in (ours, theirs))
    assert found.pairs == len(labels)
    assert found.share == pytest.approx((one == other).mean())
    if len({*one, *other}) == 1:
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx(cohen_kappa_score(one, other))


def test_agreement_of_a_published_table():
    """Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions, table 18.1: kappa is 0.68."""
    table = {(1, 1): 75, (1, 0): 1, (1, 0.5): 4, (0, 1): 5, (0, 0): 4, (0, 0.5): 1, (0.5, 0.5): 10}
    sides = defaultdict(list)
    for (ours, theirs), count in table.items():
        sides["ours"] += [ours] * count
        sides["theirs"] += [theirs] * count
    found = agreement(sides["ours"], sides["theirs"])
    assert found.share == pytest.approx(0.89)
    assert found.kappa == pytest.approx((0.89 - 0.66) / (1 - 0.66))


@pytest.mark.parametrize("labels", [([], []), ([1.0], [1.0, 0.0])])
def test_judges_of_different_pairs_are_not_compared(labels):
    with pytest.raises(ValueError, match="two judges of the same pairs"):
        agreement(*labels)
