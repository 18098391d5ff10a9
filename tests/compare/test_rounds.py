"""`fdpo rounds`: whose pairs a round is trained on, from what, what is refused, and a whole run that is killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from fdpo_fast.compare.rounds import Inputs, check, claim, drawing, join, training
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


INPUTS = Inputs({"evaluate.prompts": "a", "rounds.prompts": "b"}, {"mine:scorer": "c"})


@pytest.fixture
def claimed(raw, tmp_path):
    """Claim a folder for the configuration with some sections changed, and other inputs."""
    for own in ("pairs", "configs"):
        (tmp_path / own).mkdir()

    def claimed(inputs=INPUTS, train=None, evaluate=None, data=None, **rounds):
        changed = {name: raw[name] | (own or {}) for name, own in (("train", train), ("data", data))}
        claim(tmp_path, made(raw | changed | {"evaluate": raw["evaluate"] | (evaluate or {})}, **rounds), inputs)

    return claimed


@pytest.fixture
def first(tmp_path, claimed):
    """A folder in which the first of two rounds has its pairs."""
    claimed()
    (tmp_path / "pairs/round-01.jsonl").touch()


def test_before_pairs_are_there_nothing_is_lost_by_another_configuration(claimed):
    claimed()
    claimed(images_per_prompt=4, scorers=["fdpo_fast.digits:unseen"], train={"max_steps": 4})


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 3},
        {"train": {"output_dir": "elsewhere", "checkpoint_every": 1}},
        {"evaluate": {"batch": 1, "scorers": [], "resample": "images"}},
        {"data": {"cache_dir": "elsewhere", "encode_batch": 1}},
    ],
)
def test_what_changes_no_round_may_change(claimed, first, changes):
    claimed(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images_per_prompt": 4}, "rounds with another rounds.images_per_prompt: 3 -> 4"),
        ({"reference": "base"}, "rounds with another rounds.reference"),
        ({"keep_pairs": 1}, "rounds with another rounds.keep_pairs"),
        ({"train": {"max_steps": 4}}, "rounds with another train.max_steps"),
        ({"evaluate": {"seed": 4}}, "rounds with another evaluate.seed"),
        (
            {"inputs": INPUTS._replace(captions=INPUTS.captions | {"rounds.prompts": "d"})},
            "rounds with another content of rounds.prompts: name another train.output_dir",
        ),
        (
            {"inputs": INPUTS._replace(captions=INPUTS.captions | {"evaluate.prompts": "d"})},
            "rounds with another content of evaluate.prompts: name another train.output_dir",
        ),
    ],
)
def test_a_folder_of_other_rounds(claimed, first, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        claimed(**changes)
    claimed()  # nothing was written


def test_a_number_of_rounds_does_not_fall_below_those_that_are_there(claimed, first, tmp_path):
    (tmp_path / "pairs/round-02.jsonl").touch()
    with pytest.raises(UserError, match=r"holds 2 rounds: set rounds\.count to 2 or more"):
        claimed(count=1)


def test_another_file_of_a_scorer_is_told_once(claimed, first, capsys):
    other = INPUTS._replace(scorers={"mine:scorer": "d"})
    said = []
    for _ in range(2):
        claimed(other)
        said.append(capsys.readouterr())
    words = "warning: mine:scorer is another file than it was when earlier rounds were ranked"
    assert [words in one.out + one.err for one in said] == [True, False]


def test_inputs_tell_other_content_behind_equal_names(raw, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module, prompts = tmp_path / "ranks_by_constant.py", tmp_path / "prompts.txt"
    module.write_text("def scorer(images, prompts):\n    return [0.0] * len(images)\n")
    prompts.write_text("a\nb\n")
    config = made(raw, scorers=["ranks_by_constant:scorer"], prompts=str(prompts))
    before = check(config, config.rounds)
    assert check(config, config.rounds) == before
    prompts.write_text("a\nc\n")
    module.write_text(module.read_text().replace("0.0", "10.0"))
    after = check(config, config.rounds)
    assert after.captions["rounds.prompts"] != before.captions["rounds.prompts"]
    assert after.captions["evaluate.prompts"] == before.captions["evaluate.prompts"]
    assert after.scorers.keys() == before.scorers.keys() == {"ranks_by_constant:scorer"}
    assert after.scorers != before.scorers


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompts": []}, "no captions to draw: set rounds.prompts$"),
        ({"prompts": ["a", ""]}, "rounds.prompts: caption 2 is empty"),
        ({"prompts": "none.txt"}, "the prompt file none.txt does not exist"),
        ({"scorers": ["nonsense"]}, "rounds.scorers has no 'nonsense': use clip"),
        ({"scorers": [{"name": "clip", "model": "/nowhere"}]}, "rounds.scorers 'clip' cannot be loaded: .*/nowhere"),
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
