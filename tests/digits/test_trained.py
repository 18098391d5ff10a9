"""The flow base as its configuration makes it, and the demo upon it: minutes of training."""

import json
from pathlib import Path

import pytest

from fdpo_fast.config.load import load
from tests.helpers import ROOT


@pytest.mark.slow
def test_the_flow_draws_what_it_is_asked_for_and_is_aligned(launch, command, read_metrics, tmp_path):
    raw = json.loads(load(ROOT / "configs/digits_flow_js.json").dumps())
    raw["data"]["cache_dir"], raw["train"]["output_dir"] = str(tmp_path / "cache"), str(tmp_path / "run")
    raw["log"] |= {"tensorboard": False, "samples_every": 0}
    launch(raw)
    records = read_metrics(raw)
    assert records[0]["margin"] == 0
    assert sum(record["accuracy"] for record in records[-20:]) / 20 > 0.65
    command(raw, "demo", "--images", "32")
    report = json.loads(Path(raw["train"]["output_dir"], "report.json").read_text())
    assert 0.7 < report["base"]["accuracy_judge"] < 0.95  # chance is 0.1; the rest is room to be aligned in
    assert report["policy"]["accuracy_judge"] > report["base"]["accuracy_judge"]
    assert report["win_rate_95"][0] > 0.8
