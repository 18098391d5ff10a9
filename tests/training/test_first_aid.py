"""Runs with `loss.sft_weight`, `loss.margin` and `loss.clip_log_ratio`: what they train, and how they go on."""

import copy
import math
from pathlib import Path

import pytest
import torch

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.config.schema import Loss
from fdpo_fast.report.curves import sheet
from fdpo_fast.report.run import Run
from fdpo_fast.training.records import read_records
from tests.helpers.training import run, weights

KEYS = {
    "none": {},
    "sft_weight": {"sft_weight": 20.0},
    "margin": {"margin": 0.5},
    "clip_log_ratio": {"clip_log_ratio": 0.05},
    "all": {"sft_weight": 20.0, "margin": 0.5, "clip_log_ratio": 0.05, "winner_preserving": 0.25},
}


def run_with(raw, folder, keys, **sections):
    raw = copy.deepcopy(raw) | sections
    raw["loss"] |= keys
    raw["train"]["output_dir"] = str(folder)
    return run(raw), weights(raw)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["jensen_shannon", "forward_kl"])
def test_runs_are_other_ones_and_cached_and_live_ones_are_the_same(raw_config, tmp_path, divergence):
    raw_config["loss"]["divergence"] = divergence
    found = {}
    for name, keys in KEYS.items():
        cached, live = (
            run_with(raw_config, tmp_path / f"{name} {mode}", keys, reference={"mode": mode, "visits": 2})
            for mode in ("cached", "live")
        )
        for one, other in zip(cached[0], live[0], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        found[name] = cached
    for name, keys in KEYS.items():
        records, trained = found[name]
        # at the first step the policy is the reference
        starts = math.log1p(math.exp(keys.get("margin", 0.0))) + keys.get("sft_weight", 0.0) * records[0]["error_w"]
        assert records[0]["loss"] == pytest.approx(starts, rel=1e-5)
        assert records[0]["margin"] == 0
        assert any(record["clipped"] > 0 for record in records) == ("clip_log_ratio" in keys)
        same = [torch.equal(value, found["none"][1][part]) for part, value in trained.items()]
        assert all(same) == (name == "none")


def test_a_run_with_all_of_them_goes_on_with_the_same_bits(raw_config, launch, tmp_path):
    raw_config["loss"] |= KEYS["all"]
    whole, parts = (copy.deepcopy(raw_config) for _ in range(2))
    whole["train"]["output_dir"], parts["train"]["output_dir"] = str(tmp_path / "whole"), str(tmp_path / "parts")
    launch(whole)
    parts["train"]["max_steps"] = 3
    launch(parts)
    parts["train"]["max_steps"] = 6
    launch(parts, "--resume")
    assert all(torch.equal(value, weights(parts)[name]) for name, value in weights(whole).items())
    figures = [
        [(record["loss"], record["clipped"]) for record in read_records(Path(raw["train"]["output_dir"]))]
        for raw in (whole, parts)
    ]
    assert figures[0] == figures[1]
    panels = {panel.title for panel in sheet(Run(Path(whole["train"]["output_dir"]))).panels}
    assert "Saturated, capped, steep" in panels


@pytest.mark.parametrize(
    ("change", "starts"),
    [
        ({}, True),
        ({"type": "robust", "label_smoothing": 0.1}, True),
        ({"clip_log_ratio": 1.0}, True),
        ({"margin": 0.5}, False),
        ({"sft_weight": 0.5}, False),
        ({"type": "hinge"}, False),
    ],
)
def test_which_losses_start_at_log_2(change, starts):
    assert Loss(beta=1.0, ratio_scale=1.0, **change).starts_at_log_2 == starts


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("sft_weight", "-0.5", "a number >= 0"),
        ("margin", "-1", "a number >= 0"),
        ("margin", "null", "a number >= 0"),
        ("clip_log_ratio", "0", "a number > 0 or null"),
        ("clip_log_ratio", '"far"', "a number > 0 or null"),
    ],
)
def test_what_is_out_of_range_is_refused(raw_config, write_config, key, value, says):
    with pytest.raises(UserError, match=rf"'loss\.{key}' must be {says}, got"):
        load(write_config(raw_config), [f"loss.{key}={value}"])
