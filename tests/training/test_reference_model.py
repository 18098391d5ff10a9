"""`reference.model`: training starts from one pipeline and is measured against another."""

import json
import shutil
from pathlib import Path

import pytest

from fdpo_fast.compare.calibrate import drift
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.training.records import read_records


@pytest.fixture
def second(raw_config, launch):
    """A run that starts where a first one has ended, and its configuration."""
    raw_config["optimizer"]["lr"] = 1e-3
    raw_config["train"] |= {"max_steps": 3, "checkpoint_every": 3, "export_dtype": "fp32"}
    raw_config["log"]["every"] = 1
    launch(raw_config)
    first = raw_config["train"]["output_dir"]
    raw = json.loads(json.dumps(raw_config))
    raw["model"]["base"] = f"{first}/export"
    raw["train"]["output_dir"] = f"{first}_second"
    raw["reference"] = {"mode": "cached", "visits": 3, "model": raw_config["model"]["base"]}
    return raw


def records(raw):
    return read_records(Path(raw["train"]["output_dir"]))


def test_errors_are_the_references(second, launch):
    """The first step sees the weights that the policy starts with beside the errors of the base."""
    launch(second)
    alone = json.loads(json.dumps(second))
    alone["reference"].pop("model")
    alone["train"]["output_dir"] += "_alone"
    launch(alone)
    base = json.loads(json.dumps(second))
    base["model"]["base"] = base["reference"].pop("model")
    base["train"] |= {"output_dir": second["train"]["output_dir"] + "_base"}
    launch(base)
    ours, itself, start = records(second), records(alone), records(base)
    assert ours[0]["error_w"] == itself[0]["error_w"]  # the same policy
    assert itself[0]["delta_w"] == start[0]["delta_w"] == 0
    # and the same reference: what a step from the base sees as error, this one has subtracted
    assert ours[0]["error_w"] - ours[0]["delta_w"] == pytest.approx(start[0]["error_w"], rel=1e-6)
    assert ours[0]["delta_w"] != 0


def test_live_and_cached_ones_take_the_same_steps(second, launch):
    launch(second)
    live = json.loads(json.dumps(second))
    live["reference"] |= {"mode": "live"}
    live["train"]["output_dir"] += "_live"
    launch(live)
    assert [record["loss"] for record in records(live)] == [record["loss"] for record in records(second)]


def test_an_adapter_goes_on_the_export_before_it(second, launch):
    second["model"] |= {"train": "lora", "lora": {"rank": 2}}
    launch(second)
    assert records(second)[0]["delta_w"] != 0
    assert (Path(second["train"]["output_dir"]) / "export/pytorch_lora_weights.safetensors").is_file()


def test_mistakes_are_sentences(second, launch, tmp_path):
    other = json.loads(json.dumps(second))
    other["model"] |= {"train": "lora"}
    other["reference"] = {"mode": "adapter", "model": second["reference"]["model"]}
    assert "reference.model needs reference.mode 'cached' or 'live'" in launch(other, check=False).stderr
    second["reference"]["model"] = str(tmp_path / "nowhere")
    said = launch(second, check=False).stderr
    assert "reference.model" in said
    assert "nowhere" in said
    shape = tmp_path / "shape"
    shutil.copytree(second["model"]["base"], shape)
    file = shape / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"norm_num_groups": 4}))
    second["reference"]["model"] = str(shape)
    assert "has a unet of another shape than model.base" in launch(second, check=False).stderr


def test_calibration_measures_from_the_base_alone(second, write_config):
    with pytest.raises(UserError, match=r"leave out reference\.model"):
        drift(load(write_config(second)), 8, 1)
