"""`fdpo pairs` and `fdpo relabel` as users run them: killed at any moment, and on two ranks."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import launcher
from tests.helpers import ROOT
from tests.helpers.pictures import as_pickapic, noisy_jpeg

SLOW = "tests.helpers.scorers:patient"
PROMPTS = [f"a photo of {number} cats" for number in range(12)]


@pytest.fixture
def raw(tiny_config, tmp_path):
    rows = [(f"a {i}", noisy_jpeg(2 * i), noisy_jpeg(2 * i + 1), float(i % 2)) for i in range(150)]
    made = tiny_config("sd", as_pickapic(tmp_path, rows))
    made["evaluate"] = {"prompts": PROMPTS, "images_per_prompt": 2, "sampling_steps": 2, "scorers": [SLOW]}
    return made


def start(words, ranks=1):
    begin = launcher.deepspeed(ranks) if ranks > 1 else [sys.executable]
    line = [*begin, *(["--module", "fdpo_fast.cli"] if ranks > 1 else ["-m", "fdpo_fast.cli"]), *words]
    return subprocess.Popen(line, cwd=ROOT, env=launcher.environment(threads=1), stdout=subprocess.PIPE, text=True)


def finished(words, ranks=1):
    process = start(words, ranks)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def kept(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pairs", "relabel"])
def test_killed_at_any_moment(raw, write_config, tmp_path, name):
    """Each process is killed a while behind its first file, until one comes to its end."""

    def words(place):
        made = raw | {"data": raw["data"] | {"cache_dir": str(tmp_path / f"{place}-cache")}}
        config = tmp_path / f"{place}.json"
        config.write_text(json.dumps(made))
        (tmp_path / place).mkdir(exist_ok=True)
        output = tmp_path / place / ("made" if name == "pairs" else "labels.jsonl")
        return [name, "--config", str(config), "--output", str(output)]

    finished(words("whole"))
    kills = 0
    for pause in (0.02, 0.1, 0.2, 0.3, 0.4, 0.5):
        watched = [tmp_path / "killed", tmp_path / "killed-cache"]
        before = sum(len(kept(folder)) for folder in watched if folder.is_dir())
        process = start(words("killed"))
        while process.poll() is None and before == sum(len(kept(folder)) for folder in watched if folder.is_dir()):
            time.sleep(0.01)
        time.sleep(pause)
        kills += process.poll() is None
        process.kill()
        process.wait()
    finished(words("killed"))
    assert kills >= 3
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks(raw, write_config, tmp_path):
    config = str(write_config(raw))
    finished(["relabel", "--config", config, "--output", str(tmp_path / "one.jsonl")])
    raw["data"]["cache_dir"] = str(tmp_path / "another")
    config = str(write_config(raw))
    said = finished(["relabel", "--config", config, "--output", str(tmp_path / "two.jsonl")], ranks=2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert said.count("| all | 150 |") == 1
    finished(["pairs", "--config", config, "--output", str(tmp_path / "made")], ranks=2)
    records = [json.loads(line) for line in (tmp_path / "made/metadata.jsonl").read_text().splitlines()]
    assert [record["caption"] for record in records] == PROMPTS
    for record in records:
        images = [Image.open(tmp_path / "made" / name) for name in record["images"]]
        bright = [np.asarray(image.convert("RGB")).mean() for image in images]
        assert record["scores"][SLOW] == bright == sorted(bright, reverse=True)
    assert Path(tmp_path / "made/best_and_worst.png").is_file()
