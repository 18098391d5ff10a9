"""The README's way from the first command to the picture, as it stands."""

import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks import launcher
from fdpo_fast.cli import main as fdpo
from tests.helpers import ROOT
from tests.helpers.pages import README, as_reader, blocks


def my_pairs(folder):
    """The folder of pairs that the README tells of."""
    for side, color in (("w", "red"), ("l", "blue")):
        (folder / side).mkdir(parents=True)
        for row in range(6):
            Image.new("RGB", (96, 64 + row), color).save(folder / side / f"{row}.jpg")
            (folder / side / f"{row}.txt").write_text(f"picture {row}")


def own_pairs():
    """The commands of `Your own pairs`."""
    code = blocks(README.partition("## Your own pairs")[2], "console")[0]
    return [shlex.split(line.partition("#")[0]) for line in code.splitlines()]


def test_own_pairs_are_checked(tmp_path, monkeypatch, capsys):
    as_reader(ROOT / "README.md", tmp_path)
    my_pairs(tmp_path / "my_pairs")
    monkeypatch.chdir(tmp_path)
    (words,) = [words for program, *words in own_pairs() if words[:2] == ["data", "check"]]
    fdpo(words)
    assert re.search(r"^pairs +6", capsys.readouterr().out, re.M)


def test_the_readmes_own_configuration_fits_the_card_it_names(tmp_path, monkeypatch, capsys):
    """What `init` writes, and what extends a published configuration, plan alike."""
    as_reader(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    (_, init), (_, plan) = [(program, words) for program, *words in own_pairs() if words[0] in ("init", "plan")]
    found = []
    for file in ("my_run.json", "made.json"):
        if file == "made.json":
            fdpo([file if word == "my_run.json" else word for word in init])
        capsys.readouterr()
        fdpo([file if word == "my_run.json" else word for word in plan])
        said = capsys.readouterr().out
        found.append(float(re.search(r"^total.*? ([\d.]+) ", said, re.M)[1]))
        assert "this configuration fits" in said
    assert found[0] == found[1] < 12


@pytest.mark.slow
def test_own_pairs_are_trained_on(tmp_path, pipelines):
    """The README's commands as they stand, with a tiny base in place of SDXL, and a scorer that needs no network."""
    my_pairs(tmp_path / "my_pairs")
    scorer = (
        "def redness(images, captions):\n    return [image.convert('RGB').getpixel((0, 0))[0] for image in images]\n"
    )
    (tmp_path / "my_scorers.py").write_text(scorer)
    tiny = {"model.vae": "null", "data.resolution": 64, "train.max_steps": 2, "data.cache_dir": tmp_path / "cache",
            "train.pairs_per_step": 2, "log.samples_every": 0, "evaluate.sampling_steps": 2,
            "evaluate.scorers": '["my_scorers:redness"]'}  # fmt: skip
    sets = [word for key, value in tiny.items() for word in ("--set", f"{key}={value}")]
    for program, *words in own_pairs():
        start = launcher.deepspeed(1) if program == "deepspeed" else [sys.executable, "-m", "fdpo_fast.cli"]
        words = [str(pipelines["sdxl"]) if word.startswith("stabilityai/") else word for word in words]
        some = ["--pairs", "4", "--steps", "2"] if words[0] == "calibrate" else []
        changed = sets if "--config" in words else []
        environment = launcher.environment(threads=2) | {"PYTHONPATH": str(tmp_path)}
        subprocess.run([*start, *words, *some, *changed], check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "runs/my_run/export/model_index.json").is_file()
    assert (tmp_path / "runs/my_run/evaluation/evaluation.json").is_file()
    assert (tmp_path / "runs/my_run/report.html").is_file()
