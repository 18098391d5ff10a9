"""TensorBoard and Weights & Biases get the figures of the metrics file."""

import json
import sys
from pathlib import Path

import pytest

from fdpo_fast.config.schema import Log
from fdpo_fast.training.trackers import Trackers

ROWS = [
    {"divergence": "alpha", "alpha": 0.3, "seed": 0, "alignment": 0.7},
    {"divergence": "jeffreys", "alpha": None, "seed": 1, "alignment": 0.9},
]


def events(folder):
    """Scalars by tag, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_run_writes_the_same_to_tensorboard(raw_config, command):
    raw_config["log"]["tensorboard"] = True
    command(raw_config, "train")
    folder = Path(raw_config["train"]["output_dir"])
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scalars = events(folder / "tensorboard")
    for key in ("loss", "margin", "lr"):
        assert scalars[key] == [(r["step"], pytest.approx(r[key], rel=1e-6)) for r in records]
    low, high = records[-1]["bins"][0]["timesteps"]
    assert scalars[f"delta_w/t{low}-{high}"][-1][1] == pytest.approx(records[-1]["bins"][0]["delta_w"], rel=1e-5)


def test_a_table_of_runs(tmp_path):
    trackers = Trackers(Log(), tmp_path)
    trackers.table("points", ROWS, ["alignment"])
    trackers.close()
    values = [events(path.parent) for path in sorted(tmp_path.glob("tensorboard/*/events*"))]
    assert [found["points/alignment"][0][1] for found in values] == pytest.approx([0.7, 0.9])


def test_without_the_package_there_is_a_sentence(raw_config, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("fdpo_fast.training.trackers.find_spec", lambda name: None)
    raw_config["log"]["wandb"] = "mine"
    with pytest.raises(SystemExit, match=r"log\.wandb needs the package 'wandb': pip install wandb"):
        command(raw_config, "train")


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trackers = Trackers(Log(tensorboard=False, wandb="mine"), tmp_path)
    trackers.scalars(3, {"loss": 0.5})
    trackers.table("points", ROWS, ["alignment"])
    summary = dict(trackers.wandb.summary)
    trackers.close()
    assert summary["loss"] == 0.5
    assert "points" in summary
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
