"""A whole comparison with the public command: stopped, gone on with, reported."""

import csv
import signal
import subprocess
import sys
import time

import pytest

from fdpo_fast.evaluate.gallery import NAME
from tests.helpers import ROOT


@pytest.mark.slow
def test_a_comparison_that_is_stopped_goes_on(raw_config, write_config, tmp_path):
    raw_config["data"]["cache_dir"] = str(tmp_path / "cache")
    raw_config["train"] |= {"output_dir": str(tmp_path / "sweep"), "max_steps": 3}
    raw_config["evaluate"] = {
        "prompts": ["a handwritten two", "a handwritten five"],
        "images_per_prompt": 2,
        "sampling_steps": 2,
        "scorers": ["tests.helpers.scorers:first", "tests.helpers.scorers:second"],
        "diversity": ["rmse"],
    }
    raw_config["compare"] = {
        "divergences": ["jensen_shannon", {"divergence": "alpha", "alpha": 0.3}],
        "strengths": [1],
        "seeds": [0, 1],
        "trial_steps": 2,
        "alignment": "tests.helpers.scorers:first",
        "preference": "tests.helpers.scorers:second",
        "diversity": "rmse",
    }
    command = [
        sys.executable,
        "-m",
        "fdpo_fast.cli",
        "compare",
        "--config",
        str(write_config(raw_config)),
        "--jobs",
        "2",
    ]
    options = {"cwd": ROOT, "text": True}
    images = tmp_path / "sweep/images"
    in_the_way = tmp_path / "sweep/runs/alpha0.3-strength1-seed1"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()  # this run fails, the others go on

    process = subprocess.Popen(command, **options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 900
    while not [done for done in images.glob(f"*/{NAME}") if done.parent.name != "base"]:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert "stopped; the same command goes on where it was" in said
    kept = {done: done.stat().st_mtime_ns for done in images.glob("*/*.png")}

    report = tmp_path / "sweep/report"
    partly = subprocess.run(command, **options, capture_output=True, timeout=900)
    assert partly.returncode == 1
    assert "warning: train of alpha0.3-strength1-seed1 failed: fdpo train: train.output_dir" in partly.stdout
    assert "not in the report, and tried again by the same command: 1 of the runs" in partly.stderr
    assert "3 of 4 runs" in (report / "report.md").read_text()
    in_the_way.unlink()

    done = subprocess.run(command, **options, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    with (report / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["divergence"], row["alpha"], row["seed"]) for row in rows] == [
        ("jensen_shannon", "", "0"), ("alpha", "0.3", "0"), ("jensen_shannon", "", "1"), ("alpha", "0.3", "1"),
    ]  # fmt: skip
    assert len(list((tmp_path / "cache").glob("reference-*"))) == 1  # one cache for all runs
    assert not list((tmp_path / "sweep/runs").glob("*/export"))

    changed = subprocess.run([*command, "--set", "train.max_steps=4"], **options, capture_output=True, timeout=300)
    assert "a comparison with another train.max_steps" in changed.stderr
