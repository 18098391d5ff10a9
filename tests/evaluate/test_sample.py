"""`fdpo sample` and `fdpo evaluate`: what they draw, keep and refuse."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks import launcher
from fdpo_fast.evaluate.sample import seed_of
from fdpo_fast.models.presets import build
from tests.helpers import ROOT, scorers

PROMPTS = ["a photo of a cat", "an oil painting of a house", "a table"]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A pipeline with other weights."""
    return build("tiny_sd", tmp_path_factory.mktemp("other") / "sd", seed=1)


@pytest.fixture
def raw(tiny_config, tmp_path, other):
    made = tiny_config("sd", tmp_path / "no pairs are read")
    made["model"]["dtype"] = "fp32"
    made["evaluate"] = {
        "prompts": PROMPTS,
        "images_per_prompt": 2,
        "sampling_steps": 2,
        "guidance": 3.0,
        "seed": 5,
        "batch": 2,
        "scorers": ["tests.helpers.scorers:brightness"],
        "diversity": ["rmse"],
    }
    return made


def folder_of(raw):
    return Path(raw["train"]["output_dir"]) / "evaluation"


def test_base_and_policy_from_the_same_noise(command, raw, other):
    command(raw, "sample", "--checkpoint", str(other))
    folder = folder_of(raw)
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    assert len(rows) == 2 * len(PROMPTS) * 2
    by_model = {
        model: [(row["prompt"], row["image"], row["seed"]) for row in rows if row["model"] == model]
        for model in ("base", "policy")
    }
    assert by_model["base"] == by_model["policy"]
    assert len({seed for *_, seed in by_model["base"]}) == 6
    with Image.open(folder / rows[0]["file"]) as image:
        assert image.size == (64, 64)
        assert image.text["prompt"] == PROMPTS[0]
        assert image.text["seed"] == str(rows[0]["seed"])
        assert image.text["steps"] == "2"
    assert Image.open(folder / "side_by_side.png").width > 4 * 64

    # what the index says is enough to draw an image again with diffusers alone
    from diffusers import StableDiffusionPipeline

    row = next(row for row in rows if row["model"] == "policy" and row["image"] == 1)
    pipeline = StableDiffusionPipeline.from_pretrained(other, safety_checker=None)
    generator = torch.Generator().manual_seed(row["seed"])
    again = pipeline(row["prompt"], generator=generator, num_inference_steps=2, guidance_scale=3.0, height=64, width=64)
    difference = np.asarray(again.images[0]).astype(int) - np.asarray(Image.open(folder / row["file"])).astype(int)
    assert abs(difference).max() <= 1  # the batch had two images


def test_what_is_drawn_stays_and_what_is_missing_comes_back(command, raw):
    command(raw, "sample", "--no-policy")
    files = sorted((folder_of(raw) / "base").glob("*.png"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    files[3].unlink()
    command(raw, "sample", "--no-policy")
    assert {path: path.read_bytes() for path in files} == {path: bytes_ for path, (bytes_, _) in before.items()}
    untouched = [path for path, (_, time) in before.items() if path.stat().st_mtime_ns == time]
    assert len(untouched) == 4  # the missing image's batch was drawn anew, for its bits may depend on the batch


def test_another_setting_or_checkpoint_is_refused(command, raw, other, pipelines):
    command(raw, "sample", "--no-policy")
    changed = {**raw, "evaluate": {**raw["evaluate"], "guidance": 4.0}}
    with pytest.raises(SystemExit, match="images of other guidance"):
        command(changed, "sample", "--no-policy")
    with pytest.raises(SystemExit, match="images of other captions, seeds or numbers of images: name"):
        command({**raw, "evaluate": {**raw["evaluate"], "prompts": PROMPTS[:2]}}, "sample", "--no-policy")
    command(raw, "sample", "--no-base", "--checkpoint", f"mine={other}")
    with pytest.raises(SystemExit, match="images of other weights"):
        command(raw, "sample", "--no-base", "--checkpoint", f"mine={pipelines['sd']}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--checkpoint", "/nowhere"], "--checkpoint '/nowhere': there is no folder of that name in /"),
        (["--checkpoint", "{tmp}"], "is no pipeline, adapter or checkpoint"),
        (["--checkpoint", "base={other}"], "'base' cannot name a policy"),
        (["--checkpoint", "a/b={other}"], "cannot name a policy"),
        (["--checkpoint", "a={other}", "--checkpoint", "a={other}"], "one name twice"),
        (["--no-policy", "--no-base"], "nothing to draw"),
        (["--no-policy", "--prompts", "none.txt"], "does not exist"),
        (
            ["--no-policy", "--set", "evaluate.scheduler=Nonsense"],
            "evaluate.scheduler 'Nonsense' does not fit: use one",
        ),
        (["--no-policy", "--set", "evaluate.scheduler=DPMSolverSDEScheduler"], "'DPMSolverSDEScheduler' does not fit"),
        ([], "there is no folder of that name in"),
    ],
)
def test_bad_input_is_one_sentence(command, raw, other, tmp_path, words, sentence):
    words = [word.format(other=other, tmp=tmp_path) for word in words]
    with pytest.raises(SystemExit, match=sentence) as error:
        command(raw, "sample", *words)
    assert len(str(error.value).splitlines()) == 1


def test_any_scheduler_of_diffusers(command, raw):
    command(raw, "sample", "--no-policy", "--set", "evaluate.scheduler=EulerAncestralDiscreteScheduler")
    rows = pq.read_table(folder_of(raw) / "index.parquet").to_pylist()
    assert {row["scheduler"] for row in rows} == {"EulerAncestralDiscreteScheduler"}


def test_a_checkpoint_draws_what_the_export_draws(raw_config, command, tmp_path):
    raw_config["evaluate"] = {"prompts": ["a handwritten two"], "sampling_steps": 2, "images_per_prompt": 2}
    command(raw_config, "train")
    run = Path(raw_config["train"]["output_dir"])
    last = f"last={run / 'checkpoints/step-000006'}"
    command(raw_config, "sample", "--checkpoint", f"export={run}", "--checkpoint", last)
    images = {
        name: [path.read_bytes() for path in sorted((folder_of(raw_config) / name).glob("*.png"))]
        for name in ("base", "export", "last")
    }
    pixels = {name: [np.asarray(Image.open(path)) for path in sorted((folder_of(raw_config) / name).glob("*.png"))]
              for name in images}  # fmt: skip
    assert all((a == b).all() for a, b in zip(pixels["export"], pixels["last"], strict=True))
    assert any((a != b).any() for a, b in zip(pixels["export"], pixels["base"], strict=True))
    assert "report.html" in command_of_report(run)
    assert "Step 6 of 6, finished" in (run / "report.html").read_text()


def command_of_report(run):
    done = subprocess.run(
        [sys.executable, "-m", "fdpo_fast.cli", "report", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_evaluate_compares_with_the_base(command, raw, other):
    command(raw, "sample", "--checkpoint", str(other))
    printed = command(raw, "evaluate")
    folder = folder_of(raw)
    found = json.loads((folder / "evaluation.json").read_text())
    means = {}
    for model in ("base", "policy"):
        images = [np.asarray(Image.open(path)) for path in sorted((folder / model).glob("*.png"))]
        means[model] = np.array([image.mean() for image in images])
        score = found["scores"]["tests.helpers.scorers:brightness"][model]
        assert score["mean"]["value"] == pytest.approx(means[model].mean())
        assert score["median"]["value"] == pytest.approx(np.median(means[model]))
        assert score["median"]["low"] <= score["median"]["value"] <= score["median"]["high"]
    won = found["scores"]["tests.helpers.scorers:brightness"]["policy"]["win_rate"]
    assert won["value"] == pytest.approx((means["policy"] > means["base"]).mean())
    assert won["low"] <= won["value"] <= won["high"]
    assert found["scores"]["tests.helpers.scorers:brightness"]["base"]["win_rate"] is None
    assert (found["captions"], found["images_per_prompt"], found["seed"]) == (3, 2, 5)
    assert "| tests.helpers.scorers:brightness (yours) | policy |" in printed
    assert "diversity: rmse (pixels)" in printed


def test_a_measure_that_fails_leaves_the_others(command, raw, other):
    command(raw, "sample", "--checkpoint", str(other))
    raw["evaluate"]["scorers"] = [
        {"name": "clip", "model": "/nowhere/clip"},
        "tests.helpers.scorers:broken",
        "tests.helpers.scorers:short",
        {"name": "tests.helpers.scorers:brightness", "options": {"factor": 2.0}},
    ]
    raw["evaluate"]["diversity"] = [{"name": "lpips", "model": "/nowhere"}, "rmse"]
    with pytest.raises(SystemExit) as error:
        command(raw, "evaluate")
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for line, words in zip(
        lines, ["/nowhere/clip", "no such caption", "1 scores for 2 images", "'lpips' takes a folder"], strict=True
    ):
        assert words in line
    found = json.loads((folder_of(raw) / "evaluation.json").read_text())
    assert list(found["scores"]) == ["tests.helpers.scorers:brightness"]
    assert list(found["diversity"]) == ["rmse"]
    assert len(found["failures"]) == 4


def test_measures_that_are_not_there_are_told_before_anything_is_scored(command, raw):
    command(raw, "sample", "--no-policy")
    good = "tests.helpers.scorers:brightness"
    raw["evaluate"]["scorers"] = [good, "nonsense", "no.such.module:score", "tests.helpers.scorers:missing"]
    raw["evaluate"]["diversity"] = ["rmsd"]
    with pytest.raises(SystemExit) as error:
        command(raw, "evaluate")
    lines = str(error.value).splitlines()
    for line, words in zip(
        lines,
        ["has no 'nonsense': use clip", "No module named 'no'", "no 'missing'", "diversity has no 'rmsd'"],
        strict=True,
    ):
        assert words in line
    assert not list(folder_of(raw).rglob("scores"))


def test_scores_are_kept_until_the_images_change(command, raw, other, monkeypatch):
    command(raw, "sample", "--no-policy")
    command(raw, "evaluate")
    calls = []

    def counted(images, prompts):
        calls.append(len(images))
        return [0.0] * len(images)

    monkeypatch.setattr(scorers, "brightness", counted)
    command(raw, "evaluate")
    assert not calls
    shutil.rmtree(folder_of(raw) / "base/scores")
    command(raw, "evaluate")
    assert sum(calls) == 6


def test_another_seed_than_that_of_the_images(command, raw):
    command(raw, "sample", "--no-policy")
    with pytest.raises(SystemExit, match=r"was not drawn with evaluate\.seed 99"):
        command(raw, "evaluate", "--set", "evaluate.seed=99")


def test_an_edited_function_is_asked_again(command, raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a console script does not look by itself
    raw["evaluate"]["scorers"] = ["mine_edited:score"]
    command(raw, "sample", "--no-policy")
    for value in ("1.0", "-22.5"):
        sys.modules.pop("mine_edited", None)
        (tmp_path / "mine_edited.py").write_text(f"def score(images, prompts):\n    return [{value}] * len(images)\n")
        command(raw, "evaluate")
        found = json.loads((folder_of(raw) / "evaluation.json").read_text())
        assert found["scores"]["mine_edited:score"]["base"]["mean"]["value"] == float(value)


def test_a_measure_is_listed_once(command, raw):
    raw["evaluate"]["scorers"] *= 2
    with pytest.raises(SystemExit, match=r"has 'tests\.helpers\.scorers:brightness' twice"):
        command(raw, "evaluate")


def test_diversity_takes_two_images(command, raw):
    raw["evaluate"]["images_per_prompt"] = 1
    command(raw, "sample", "--no-policy")
    with pytest.raises(SystemExit, match="at least two images a caption"):
        command(raw, "evaluate")
    assert json.loads((folder_of(raw) / "evaluation.json").read_text())["scores"]


def test_nothing_was_sampled(command, raw):
    with pytest.raises(SystemExit, match="holds no images of `fdpo sample`"):
        command(raw, "evaluate")


@pytest.mark.slow
def test_ranks_draw_what_one_process_draws(command, raw, write_config, tmp_path):
    command(raw, "sample", "--no-policy")
    alone = {path.name: path.read_bytes() for path in (folder_of(raw) / "base").glob("*.png")}
    subprocess.run(
        [*launcher.deepspeed(2), "--module", "fdpo_fast.cli", "sample",
         "--config", str(write_config(raw)), "--no-policy",
         "--output", str(tmp_path / "two")],
        cwd=ROOT, env=launcher.environment(threads=1), check=True, timeout=300,
    )  # fmt: skip
    together = {path.name: path.read_bytes() for path in (tmp_path / "two/base").glob("*.png")}
    assert together.keys() == alone.keys()
    for name, content in alone.items():
        ours, theirs = (np.asarray(Image.open(tmp_path / f).convert("RGB")).astype(int) for f in (
            folder_of(raw) / "base" / name, tmp_path / "two/base" / name))  # fmt: skip
        assert abs(ours - theirs).max() <= 1, (name, len(content))
    assert len(pq.read_table(tmp_path / "two/index.parquet")) == 6


def test_seeds_follow_caption_and_number():
    assert seed_of(0, "a cat", 1) == seed_of(0, "a cat", 1)
    assert len({seed_of(s, p, k) for s in range(3) for p in ("a cat", "a dog") for k in range(4)}) == 24
    assert 0 <= seed_of(0, "a cat", 0) < 2**48
