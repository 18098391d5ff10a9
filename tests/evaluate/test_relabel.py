"""`fdpo relabel`: what it judges, keeps, reports and refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.labels import read_labels
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.distributed import Rank, single_process
from fdpo_fast.evaluate.feedback import parts, relabel
from tests.helpers import scorers
from tests.helpers.pictures import FORMATS, as_latents, as_pickapic, difficult_rows, encoded, write

BRIGHTNESS, FIRST = "tests.helpers.scorers:brightness", "tests.helpers.scorers:first"


def gray(value):
    return encoded(Image.new("RGB", (24, 24), (value,) * 3), "PNG")


def rows_of(values, labels, captions=None):
    """Pairs of plain images by their brightness."""
    captions = captions or [f"a {row}" for row in range(len(values))]
    return [(c, gray(a), gray(b), label) for c, (a, b), label in zip(captions, values, labels, strict=True)]


@pytest.fixture
def raw(tiny_config, tmp_path):
    def make(source, **pairs):
        made = tiny_config("sd", source)
        made["evaluate"] = {"scorers": [BRIGHTNESS], "batch": 3}
        made["pairs"] = pairs
        return made

    return make


@pytest.fixture
def relabelled(command, tmp_path):
    def run(raw, name="labels.jsonl"):
        said = command(raw, "relabel", "--output", str(tmp_path / name))
        return said, read_labels(tmp_path / name)

    return run


VALUES = [(200, 10), (10, 200), (90, 90), (50, 60), (10, 14)]


def test_labels_are_those_of_the_scorer(raw, relabelled, tmp_path):
    said, labels = relabelled(raw(as_pickapic(tmp_path, rows_of(VALUES, [1.0, 1.0, 0.5, 0.5, 0.0])), tie_below=5.0))
    assert [(label.id, label.caption, label.label, label.by) for label in labels] == [
        (2 * row, f"a {row}", label, BRIGHTNESS) for row, label in enumerate([1.0, 0.0, 0.5, 0.0, 0.5])
    ]
    assert [label.more["scores"][BRIGHTNESS] for label in labels] == [list(map(float, two)) for two in VALUES]
    assert "5 pairs judged, 2 of them ties; 0 left out" in said
    kappa = cohen_kappa_score([1, 0, 2, 0, 2], [1, 1, 2, 2, 0])
    assert f"| all | 5 | 40.0% | {kappa:.3f} |" in said
    assert "next: fdpo train" in said


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "latents"])
def test_every_format_of_images(raw, relabelled, tmp_path, name):
    """Image 0 and image 1 are the ones that training with the labels takes for them."""
    source = FORMATS[name](tmp_path, difficult_rows(12))
    said, labels = relabelled(raw(source))
    data = Data(source=str(source), labels=str(tmp_path / "labels.jsonl"), unlabelled="drop")
    pairs = [item for item in open_source(data).read(0, 99) if hasattr(item, "preferred")]
    assert {pair.id for pair in pairs} == {label.id for label in labels if label.label != 0.5}
    for pair in pairs:
        bright = [np.asarray(relabel._decoded(side, 256.0)).mean() for side in (pair.preferred, pair.dispreferred)]
        assert bright[0] > bright[1]
    assert ("1 left out, as an image does not decode" in said) == (name != "rankings")


def test_pick_a_pic_says_what_drew_its_images(raw, relabelled, tmp_path):
    captions = ["a cat", "word " * 30, "a dog", "a cat", "word " * 20]
    said, _ = relabelled(raw(as_pickapic(tmp_path, rows_of(VALUES, [1.0, 1.0, 0.5, 0.5, 0.0], captions))))
    lines = [line for line in said.splitlines() if line.startswith("| ") and "%" in line]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [
        "all", "up to 10 words", "11 to 25 words", "over 25 words", "an image by base"
    ]  # fmt: skip
    assert [line.split(" | ")[1] for line in lines] == ["5", "3", "1", "1", "5"]


def test_a_source_that_does_not_say_who_drew(raw, relabelled, tmp_path):
    said, _ = relabelled(raw(FORMATS["jsonl"](tmp_path, rows_of(VALUES, [1.0] * 5))))
    assert "by model: the source does not say what drew its images" in said


def test_several_scorers(raw, relabelled, tmp_path):
    made = raw(as_pickapic(tmp_path, rows_of(VALUES, [1.0] * 5)), combine="majority")
    made["evaluate"]["scorers"] = [BRIGHTNESS, FIRST, "tests.helpers.scorers:darkness"]
    _, labels = relabelled(made)
    assert [label.label for label in labels] == [pytest.approx(share) for share in (2 / 3, 1 / 3, 0.5, 1 / 3, 1 / 3)]
    assert {label.by for label in labels} == {f"{BRIGHTNESS} + {FIRST} + tests.helpers.scorers:darkness"}
    assert set(labels[0].more["scores"]) == set(made["evaluate"]["scorers"])
    made["pairs"] = {"weights": {"tests.helpers.scorers:darkness": 3.0}}
    _, labels = relabelled(made)  # darkness is the opposite of both others
    assert [label.label for label in labels] == [0.0, 1.0, 0.5, 1.0, 1.0]


def test_what_is_judged_is_not_judged_again(raw, relabelled, tmp_path, monkeypatch):
    """Killed in any of the parts, it goes on behind the last whole one, and the same bytes come of it."""
    source = as_pickapic(tmp_path, rows_of([(row, 50 + row % 7) for row in range(40)], [1.0] * 40))
    monkeypatch.setattr(relabel, "ROWS", 6)
    seen, limit = [], [10**6]

    def counted(images, captions):
        if len(seen) + len(images) > limit[0]:
            raise KeyboardInterrupt
        seen.extend(captions)
        return [np.asarray(image).mean() for image in images]

    monkeypatch.setattr(scorers, "brightness", counted)
    relabelled(raw(source))
    whole = (tmp_path / "labels.jsonl").read_bytes()
    assert len(seen) == 80
    relabelled(raw(source))
    assert len(seen) == 80  # all is kept
    for kill in (1, 13, 37, 50, 79):
        made = raw(source)
        made["data"]["cache_dir"] = str(tmp_path / f"cache{kill}")
        seen.clear()
        limit[0] = kill
        with pytest.raises(KeyboardInterrupt):
            relabelled(made, "killed.jsonl")
        assert not (tmp_path / "killed.jsonl").exists()
        limit[0] = 10**6
        relabelled(made, "killed.jsonl")
        assert (tmp_path / "killed.jsonl").read_bytes() == whole
        assert len(seen) <= 80 + 12
        (tmp_path / "killed.jsonl").unlink()


def test_another_combination_judges_nothing_again(raw, relabelled, tmp_path, monkeypatch):
    source = as_pickapic(tmp_path, rows_of(VALUES, [1.0] * 5))
    _, labels = relabelled(raw(source))
    monkeypatch.setattr(scorers, "brightness", scorers.broken)
    _, others = relabelled(raw(source, tie_below=5.0))
    assert [label.label for label in others].count(0.5) == 2 > [label.label for label in labels].count(0.5)


def test_all_ties_are_refused_and_labels_that_are_there_stay(raw, relabelled, tmp_path):
    source = as_pickapic(tmp_path, rows_of(VALUES, [1.0] * 5))
    relabelled(raw(source))
    before = (tmp_path / "labels.jsonl").read_bytes()
    with pytest.raises(SystemExit, match=r"tie within pairs\.tie_below 1000: there is nothing to train on; lower it, "):
        relabelled(raw(source, tie_below=1000.0))
    assert (tmp_path / "labels.jsonl").read_bytes() == before


def test_labels_of_others_stay(raw, relabelled, command, tmp_path):
    made = raw(as_pickapic(tmp_path, rows_of(VALUES, [1.0] * 5)))
    _, labels = relabelled(made)
    file = tmp_path / "labels.jsonl"
    file.write_text(file.read_text() + labels[0].line().replace(BRIGHTNESS, "alice"))
    before = file.read_bytes()
    with pytest.raises(SystemExit, match="holds labels by alice: name another file by --output, or delete it"):
        relabelled(made)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("scorer", "sentence"),
    [
        (
            "nan",
            r"evaluate\.scorers 'tests.helpers.scorers:nan': gave nan for an image of 'a 0', and is to give finite",
        ),
        ("short", r"evaluate\.scorers 'tests.helpers.scorers:short': gave 1 scores for 3 images"),
        (
            "broken",
            r"evaluate\.scorers 'tests.helpers.scorers:broken': KeyError: 'no such caption' \(.*, line 14\)",
        ),
        ("missing", r"evaluate\.scorers 'tests.helpers.scorers:missing': the module .* has no 'missing'"),
        ("np", r"evaluate\.scorers 'tests.helpers.scorers:np' is no function"),
    ],
)
def test_a_scorer_that_fails_is_named(raw, relabelled, tmp_path, scorer, sentence):
    made = raw(as_pickapic(tmp_path, rows_of(VALUES, [1.0] * 5)))
    made["evaluate"]["scorers"] = [f"tests.helpers.scorers:{scorer}"]
    with pytest.raises(SystemExit, match=sentence) as error:
        relabelled(made)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "labels.jsonl").exists()


def test_sources_without_images_are_refused(raw, relabelled, tmp_path):
    with pytest.raises(SystemExit, match="has latents, and no images"):
        relabelled(raw(as_latents(tmp_path, rows_of(VALUES, [1.0] * 5))))
    path = write(tmp_path / "broken.parquet", [("a", b"no image", gray(1), 1.0)])
    with pytest.raises(SystemExit, match="gives no pair with two images to look at"):
        relabelled(raw(path))
    made = raw(as_pickapic(tmp_path, rows_of(VALUES, [1.0] * 5)))
    made["evaluate"]["scorers"] = []
    with pytest.raises(SystemExit, match=r"evaluate\.scorers is empty"):
        relabelled(made)


def test_weights_of_scorers_that_are_not_there(raw, relabelled, tmp_path):
    with pytest.raises(SystemExit, match=r"pairs\.weights has 'clip', which evaluate\.scorers has not"):
        relabelled(raw(tmp_path, weights={"clip": 2.0}))


def test_a_part_that_is_broken_is_named(raw, relabelled, tmp_path):
    made = raw(as_pickapic(tmp_path, rows_of(VALUES, [1.0] * 5)))
    relabelled(made)
    (part,) = Path(made["data"]["cache_dir"]).glob("scores-*/000000.json")
    part.write_text(json.dumps({})[:1])
    with pytest.raises(SystemExit, match=r"000000\.json is not valid JSON"):
        relabelled(made)


def test_parts_are_shared_between_ranks(tmp_path):
    """Each rank makes its own and reads all of them; nothing here waits for the other, whose parts are missing once."""
    made = []

    def part(number):
        made.append(number)
        return {"of": number}

    def of_rank(index):
        rank = Rank(index, 2, single_process().device, lambda: None)
        return list(parts.in_parts(tmp_path, {"a": 1}, [1] * 5, part, "scores", rank))

    with pytest.raises(UserError, match=r"000001\.json cannot be read"):
        of_rank(0)
    assert of_rank(1) == of_rank(0) == [{"of": number} for number in range(5)]
    assert made == [0, 2, 4, 1, 3]
