"""`fdpo pairs`: what it draws, ranks, keeps and refuses, and that its folder is trained on as it is."""

import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fdpo_fast import files
from fdpo_fast.config.load import load
from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import Pair
from fdpo_fast.data.readers.detect import detect, open_source
from fdpo_fast.evaluate.sample import seed_of
from fdpo_fast.models.presets import build
from tests.helpers import scorers

PROMPTS = ["a photo of a cat", "größe ✓ 猫"]
BRIGHTNESS, DARKNESS = "tests.helpers.scorers:brightness", "tests.helpers.scorers:darkness"


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A pipeline with other weights."""
    return build("tiny_sd", tmp_path_factory.mktemp("other") / "sd", seed=1)


@pytest.fixture
def raw(tiny_config, tmp_path):
    made = tiny_config("sd", tmp_path / "no pairs are read")
    made["evaluate"] = {"prompts": PROMPTS, "images_per_prompt": 3, "sampling_steps": 1, "scorers": [BRIGHTNESS]}
    return made


@pytest.fixture
def drawn(command, tmp_path):
    """Make pairs; returns the records, by their folder, and what was said."""

    def run(raw, *words, folder=None):
        folder = folder or tmp_path / "made"
        said = command(raw, "pairs", "--output", str(folder), *words)
        return [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()], said

    return run


def brightness_of(path):
    return np.asarray(Image.open(path).convert("RGB")).mean()


def pairs_of(folder):
    source = open_source(Data(source=str(folder)))
    return [item for item in source.read(0, len(source)) if isinstance(item, Pair)]


@pytest.mark.parametrize(("which", "count"), [("best_worst", 1), ("adjacent", 5), ("all", 15)])
def test_base_and_policy_ranked_within_a_caption(drawn, raw, other, tmp_path, which, count):
    raw["pairs"] = {"which": which}
    records, said = drawn(raw, "--policy", f"mine={other}")
    folder = tmp_path / "made"
    assert detect(str(folder)) == "jsonl"
    for record in records:
        bright = [brightness_of(folder / name) for name in record["images"]]
        assert record["scores"] == {BRIGHTNESS: bright}
        assert bright == sorted(bright, reverse=True)
        assert record["rank"] == sorted(record["rank"])
        for name, seed, model in zip(record["images"], record["seeds"], record["models"], strict=True):
            number = int(Path(name).stem.rpartition("-")[2])
            assert (seed, model) == (seed_of(0, record["caption"], number), Path(name).parent.name)
    pairs = pairs_of(folder)
    assert len(pairs) == 2 * count
    for pair in pairs:
        one, two = (brightness_of(folder / side.name) for side in (pair.preferred, pair.dispreferred))
        assert one > two
        assert pair.models == tuple(side.name.split("/")[0] for side in (pair.preferred, pair.dispreferred))
    for caption in PROMPTS:
        own = {name for record in records if record["caption"] == caption for name in record["images"]}
        best = max(own, key=lambda name: brightness_of(folder / name))
        every = [*folder.glob(f"*/{PROMPTS.index(caption):05d}-*.png")]
        assert len(every) == 6
        assert brightness_of(folder / best) == max(map(brightness_of, every))
    assert Image.open(folder / "best_and_worst.png").width > 2 * 64
    assert f"{len(records)} records of 2 captions with 6 images each; 0 are ties alone" in said
    assert f"data.source={folder}" in said


def test_the_command_that_comes_next_reads_the_pairs(drawn, raw, tmp_path, write_config):
    """However the configuration reads its own source."""
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"id": 0, "caption": "?", "label": 1, "by": "ann"}\n')
    raw["data"] |= {"format": "pickapic", "split": "test", "max_rows": 1, "labels": str(labels), "unlabelled": "drop"}
    _, said = drawn(raw)
    (line,) = [line for line in said.splitlines() if line.startswith("next: ")]
    words = shlex.split(line)
    changes = [word for before, word in pairwise(words) if before == "--set"]
    source = open_source(load(write_config(raw), changes).data)
    assert len([item for item in source.read(0, len(source)) if isinstance(item, Pair)]) == len(PROMPTS)


def test_a_policy_alone_and_fewer_images(drawn, raw, other):
    records, _ = drawn(raw, "--policy", f"mine={other}", "--no-base", "--images-per-prompt", "2")
    assert {model for record in records for model in record["models"]} == {"mine"}
    assert [len(record["images"]) for record in records] == [2, 2]


def test_ties_are_equal_ranks(drawn, raw, tmp_path):
    raw["pairs"] = {"which": "all"}
    records, _ = drawn(raw)
    scores = np.array([record["scores"][BRIGHTNESS] for record in records])
    gaps = scores[:, :-1] - scores[:, 1:]
    raw["pairs"]["tie_below"] = float(np.sort(gaps.ravel())[1] + 1e-9)
    records, _ = drawn(raw)
    found = [np.diff(record["rank"]) == 0 for record in records]
    np.testing.assert_array_equal(found, gaps < raw["pairs"]["tie_below"])
    assert len(pairs_of(tmp_path / "made")) < 6


def test_another_combination_draws_and_scores_nothing_again(drawn, raw, monkeypatch, tmp_path):
    first, _ = drawn(raw)
    monkeypatch.setattr(scorers, "brightness", scorers.broken)
    raw["pairs"] = {"which": "adjacent"}
    second, _ = drawn(raw)
    assert (len(first), len(second)) == (2, 4)
    raw["evaluate"]["scorers"] += [DARKNESS]
    monkeypatch.undo()
    raw["pairs"] = {"weights": {DARKNESS: 3.0}}
    third, _ = drawn(raw)
    assert [record["images"][::-1] for record in third] == [record["images"] for record in first]


def kept(folder):
    """The bytes of all images, records and sheets."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [2, 6, 9, 11, 12, pytest.param(None, marks=pytest.mark.slow)])
def test_a_kill_at_any_file_costs_nothing(drawn, raw, tmp_path, monkeypatch, at):
    settle, calls, last = files.settle, [], [10**6]

    def counted(partial, path):
        calls.append(path)
        if len(calls) > last[0]:
            raise Killed
        settle(partial, path)

    monkeypatch.setattr(files, "settle", counted)
    drawn(raw)
    whole, count = kept(tmp_path / "made"), len(calls)
    assert count == 13
    for kill in range(count) if at is None else [at]:
        shutil.rmtree(tmp_path / "made")
        shutil.rmtree(raw["data"]["cache_dir"])
        calls.clear()
        last[0] = kill
        with pytest.raises(Killed):
            drawn(raw)
        last[0] = 10**6
        drawn(raw)
        assert kept(tmp_path / "made") == whole


@pytest.mark.parametrize(
    ("changes", "words", "sentence"),
    [
        ({"scorers": ["tests.helpers.scorers:nan"]}, [], r"'tests.helpers.scorers:nan': gave nan for an image of"),
        ({"scorers": ["tests.helpers.scorers:short"]}, [], r"scorers:short': gave 1 scores for 4 images"),
        (
            {"scorers": ["tests.helpers.scorers:flat"]},
            [],
            "of every caption tie: there is nothing to train on; take other",
        ),
        ({"scorers": []}, [], r"evaluate\.scorers is empty"),
        ({"scorers": ["nonsense"]}, [], "has no 'nonsense': use clip"),
        (
            {"scorers": [{"name": "clip", "model": "/nowhere"}]},
            [],
            "evaluate.scorers 'clip' cannot be loaded: .*/nowhere",
        ),
        ({"prompts": []}, [], "no captions to draw: set evaluate.prompts, or give --prompts FILE"),
        ({}, ["--prompts", "none.txt"], "does not exist"),
        ({"images_per_prompt": 1}, [], "one image of a caption makes no pair: raise --images-per-prompt"),
        ({}, ["--no-base"], "nothing to draw, or one name twice: ; give --policy NAME=PATH"),
        ({}, ["--policy", "base={other}"], "--policy 'base={other}': 'base' cannot name a policy"),
        ({}, ["--policy", "/nowhere"], "--policy '/nowhere': there is no folder"),
    ],
)
def test_bad_input_is_one_sentence(drawn, raw, other, tmp_path, changes, words, sentence):
    raw["evaluate"] |= changes
    with pytest.raises(SystemExit, match=sentence.format(other=other)) as error:
        drawn(raw, *[word.format(other=other) for word in words])
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "made/metadata.jsonl").exists()


def test_a_folder_of_another_configuration(drawn, raw, tmp_path):
    drawn(raw)
    before = kept(tmp_path / "made")
    raw["evaluate"]["sampling_steps"] = 2
    with pytest.raises(SystemExit, match="holds images of other steps: name another folder by --output, or delete it"):
        drawn(raw)
    assert kept(tmp_path / "made") == before


def test_pairs_of_the_digits_are_trained_on(drawn, raw_config, launch, tmp_path, read_metrics):
    """From a model and captions to a trained model, by the rule's own score."""
    from fdpo_fast.digits.dataset import CAPTIONS

    raw_config["evaluate"] = {"prompts": list(CAPTIONS[:4]), "images_per_prompt": 3, "sampling_steps": 2, "batch": 6}
    raw_config["evaluate"]["scorers"] = ["fdpo_fast.digits:preference"]
    raw_config["pairs"] = {"which": "all"}
    records, _ = drawn(raw_config)
    assert len(records) == 4
    launch(raw_config, "--set", f"data.source={tmp_path / 'made'}")
    assert [metrics["step"] for metrics in read_metrics(raw_config)][-1] == 5
    assert (Path(raw_config["train"]["output_dir"]) / "export/model_index.json").is_file()


def test_relabelled_digits_are_trained_on(command, raw_config, launch, tmp_path, read_metrics):
    raw_config["evaluate"] = {"scorers": ["fdpo_fast.digits:preference", "fdpo_fast.digits:unseen"]}
    said = command(raw_config, "relabel", "--output", str(tmp_path / "labels.jsonl"))
    assert "| all | " in said
    raw_config["data"]["labels"] = str(tmp_path / "labels.jsonl")
    launch(raw_config)
    assert read_metrics(raw_config)[-1]["step"] == 5


@pytest.mark.slow
def test_pairs_of_a_tiny_sdxl_are_trained_on(command, tiny_config, launch, tmp_path, monkeypatch, read_metrics):
    """By a function of the user's in the working folder."""
    (tmp_path / "my_own_scorer.py").write_text(
        "import numpy as np\n"
        "def redness(images, captions):\n    return [np.asarray(image)[..., 0].mean() for image in images]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    raw = tiny_config("sdxl", tmp_path / "made")
    raw["evaluate"] = {"prompts": PROMPTS, "images_per_prompt": 4, "sampling_steps": 2}
    raw["evaluate"]["scorers"] = ["my_own_scorer:redness"]
    raw["pairs"] = {"which": "adjacent"}
    command(raw, "pairs", "--output", str(tmp_path / "made"))
    launch(raw)
    assert read_metrics(raw)[-1]["step"] == 5
