"""`fdpo rounds`: whose pairs a round is trained on, from what, what is refused, and a whole run that is killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from fdpo_fast.compare.rounds import claim, drawing, join, training
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.mistakes import checked
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Data
from fdpo_fast.data.readers.detect import open_source
from tests.helpers import ROOT

PROMPTS = ["a handwritten two", "a handwritten five"]


@pytest.fixture
def raw(raw_config, tmp_path):
    raw_config["train"] |= {"output_dir": str(tmp_path / "rounds"), "max_steps": 3}
    raw_config["evaluate"] = {"prompts": PROMPTS, "images_per_prompt": 2, "sampling_steps": 2, "diversity": ["rmse"]}
    raw_config["evaluate"]["scorers"] = ["fdpo_fast.digits:unseen"]
    raw_config["pairs"] = {"which": "all"}
    raw_config["rounds"] = {"count": 2, "prompts": PROMPTS, "images_per_prompt": 3}
    raw_config["rounds"]["scorers"] = ["fdpo_fast.digits:preference"]
    return raw_config


def made(raw, **rounds):
    return checked(Config, raw | {"rounds": raw["rounds"] | rounds})


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize(("reference", "model"), [("previous", None), ("base", "digits")])
def test_a_round_starts_from_the_one_before_and_is_measured_against_it_or_the_base(
    raw, tmp_path, reference, model, train
):
    raw["model"] |= {"train": train}
    if train == "lora":
        del raw["reference"]
    config = made(raw, reference=reference)
    first = training(config, config.rounds, tmp_path, 1)
    assert first.model.base == "digits"
    assert first.reference == config.reference
    for number in (2, 3):
        own = training(config, config.rounds, tmp_path, number)
        assert own.model.base == str(tmp_path / f"runs/round-{number - 1:02d}/export")
        assert own.reference.model == model
        assert own.reference.mode == ("adapter" if train == "lora" and not model else "cached")
        assert own.data.source == str(tmp_path / f"pairs/round-{number:02d}.jsonl")
        assert own.train.output_dir == str(tmp_path / f"runs/round-{number:02d}")


@pytest.mark.parametrize(("reference", "model"), [("previous", None), ("base", "mine")])
def test_a_reference_of_ones_own_is_the_first_rounds_and_of_rounds_from_the_base(raw, tmp_path, reference, model):
    raw["reference"] |= {"model": "mine"}
    config = made(raw, reference=reference)
    assert training(config, config.rounds, tmp_path, 1).reference.model == "mine"
    assert training(config, config.rounds, tmp_path, 2).reference.model == model


def test_rounds_draw_by_seeds_of_their_own(raw):
    config = made(raw)
    found = [drawing(config, config.rounds, number).evaluate for number in (1, 2)]
    assert len({config.evaluate.seed, *(one.seed for one in found)}) == 3
    assert {(one.images_per_prompt, one.scorers[0].name) for one in found} == {(3, "fdpo_fast.digits:preference")}


@pytest.mark.parametrize(("keep", "rounds"), [(0, [3]), (1, [2, 3]), (9, [1, 2, 3])])
def test_the_pairs_of_rounds_before_are_kept(tmp_path, keep, rounds):
    for number in (1, 2, 3):
        folder = tmp_path / f"round-{number:02d}"
        (folder / "base").mkdir(parents=True)
        for image in range(2):
            Image.new("RGB", (8, 8), (number, image, 0)).save(folder / f"base/{image}.png")
        record = {"images": ["base/0.png", "base/1.png"], "caption": f"größe {number}", "rank": [2, 1]}
        (folder / "metadata.jsonl").write_text(json.dumps(record) + "\n")
    join(tmp_path, 3, keep)
    pairs = list(open_source(Data(source=str(tmp_path / "round-03.jsonl"))).read(0, 9))
    assert [pair.caption for pair in pairs] == [f"größe {number}" for number in rounds]
    colours = [Image.open(pair.preferred.content).getpixel((0, 0)) for pair in pairs]
    assert colours == [(number, 1, 0) for number in rounds]


def test_a_folder_of_other_rounds(raw, tmp_path):
    for own in ("pairs", "configs"):
        (tmp_path / own).mkdir()
    claim(tmp_path, made(raw))
    claim(tmp_path, made(raw, count=3))
    for changes in ({"images_per_prompt": 4}, {"reference": "base"}, {"keep_pairs": 1}):
        with pytest.raises(UserError, match=f"holds rounds with another rounds.{min(changes)}"):
            claim(tmp_path, made(raw, count=3, **changes))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompts": []}, "no captions to draw"),
        ({"prompts": "none.txt"}, "the prompt file none.txt does not exist"),
        ({"scorers": ["nonsense"]}, "has no 'nonsense': use clip"),
        ({"images_per_prompt": 1}, "rounds.images_per_prompt"),
        (None, "has no section 'rounds': see configs/digits_rounds.json"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(command, raw, tmp_path, change, sentence):
    raw["rounds"] = change and raw["rounds"] | change
    with pytest.raises(SystemExit, match=sentence) as error:
        command(raw, "rounds")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "rounds").exists()


def weights(folder):
    return {
        path.parent.parent.parent.name: path.read_bytes() for path in folder.glob("runs/*/export/unet/*.safetensors")
    }


def texts(folder):
    names = ["evaluation.json", *(str(path.relative_to(folder)) for path in sorted(folder.glob("pairs/**/*.jsonl")))]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(("reference", "train"), [("previous", "full"), ("base", "full"), ("previous", "lora")])
def test_rounds_that_are_killed_go_on(raw, tmp_path, reference, train):
    """Killed while each of the first stages is at work, they end in the same bytes."""
    raw["model"]["train"] = train
    if train == "lora":
        del raw["reference"]
    raw["rounds"] |= {"reference": reference, "keep_pairs": 1}

    def words(place):
        raw["train"]["output_dir"] = str(tmp_path / place)
        config = tmp_path / f"{place}.json"
        config.write_text(json.dumps(raw))
        return [sys.executable, "-m", "fdpo_fast.cli", "rounds", "--config", str(config)]

    done = subprocess.run(words("whole"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "round-02" in done.stdout
    page = (tmp_path / "whole/index.html").read_text()
    assert "drift from the base" in page
    assert Image.open(tmp_path / "whole/rounds.png").width > 500
    assert page.count("data:image/webp") == 3 * len(PROMPTS)
    killed = tmp_path / "killed"
    signs = ["images/base/model.json", "pairs/round-01/base/model.json", "runs/round-01/metrics.jsonl"]
    for sign in signs:
        process = subprocess.Popen(words("killed"), cwd=ROOT, start_new_session=True)
        end = time.monotonic() + 200
        while not (killed / sign).exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(words("killed"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(weights(killed)) == 2
    assert weights(killed) == weights(tmp_path / "whole")
    assert texts(killed) == texts(tmp_path / "whole")
    assert len(Path(killed / "pairs/round-02.jsonl").read_text().splitlines()) == 2 * len(PROMPTS)
