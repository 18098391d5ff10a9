"""Runs with `loss.winner_preserving`: what they train, what they write, that they go on bit for bit, and refusals."""

import copy
import json
from pathlib import Path

import pytest
import torch

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.config.schema import Log
from fdpo_fast.loss.function import evaluate
from fdpo_fast.loss.options import LossOptions
from fdpo_fast.report.curves import sheet
from fdpo_fast.report.run import Run
from fdpo_fast.training.metrics import COLUMNS, Metrics
from tests.helpers.preserving import alike
from tests.helpers.training import run, weights


@pytest.mark.parametrize("reference", [{"mode": "cached", "visits": 2}, {"mode": "live", "visits": 2}])
def test_a_run_is_another_one_and_says_how_much_was_scaled(raw_config, tmp_path, reference):
    raw_config["reference"] = reference
    found = {}
    for mu in (None, 0.0, 0.9):
        raw = copy.deepcopy(raw_config)
        raw["loss"]["winner_preserving"] = mu
        raw["train"]["output_dir"] = str(tmp_path / f"run {mu}")
        found[mu] = run(raw), weights(raw)
    (plain, _), (kept, _), (strict, _) = found.values()
    assert not any("loser_scale" in record for record in plain)
    assert all(0 < record["loser_scale"] <= 1 for record in kept + strict)
    assert all("loser_scale" in part for part in kept[-1]["bins"])
    assert strict[0]["loser_scale"] < kept[0]["loser_scale"] < 1
    assert kept[0]["loss"] == plain[0]["loss"]  # the value is the loss's, and the weights are still the same
    assert kept[0]["grad_norm"] != plain[0]["grad_norm"]
    for one, other in ((None, 0.0), (0.0, 0.9)):
        assert any(not torch.equal(found[one][1][name], value) for name, value in found[other][1].items())
    # on its way the preferred error is kept lower: that is what it is for
    assert strict[-1]["delta_w"] < plain[-1]["delta_w"]


def test_a_run_that_is_gone_on_with_has_the_same_bits(raw_config, launch, tmp_path):
    raw_config["loss"]["winner_preserving"] = 0.25
    whole, parts = (copy.deepcopy(raw_config) for _ in range(2))
    whole["train"]["output_dir"], parts["train"]["output_dir"] = str(tmp_path / "whole"), str(tmp_path / "parts")
    launch(whole)
    parts["train"]["max_steps"] = 3
    launch(parts)
    parts["train"]["max_steps"] = 6
    launch(parts, "--resume")
    assert all(torch.equal(value, weights(parts)[name]) for name, value in weights(whole).items())

    def scales(raw):
        lines = (Path(raw["train"]["output_dir"]) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loser_scale"] for line in lines]

    assert scales(parts) == scales(whole)
    titles = [panel.title for panel in sheet(Run(Path(whole["train"]["output_dir"]))).panels]
    assert "Scale on dispreferred images" in titles


def test_means_of_the_scale():
    pred, _, target = alike(4, (3, 5))
    for mu, columns in ((None, COLUMNS[:-1]), (0.0, COLUMNS)):
        options = LossOptions(beta=1.0, ratio_scale=1.0, reduction="none", winner_preserving=mu)
        losses, stats = evaluate(options, pred, pred, target, None)
        metrics = Metrics(Log(timestep_bins=2), options, 1000, torch.device("cpu"))
        metrics.add(losses, stats, torch.tensor([10, 20, 600, 700]))
        assert metrics.columns == columns
        assert metrics.current.shape == (2, len(columns))
        torch.testing.assert_close(metrics.current[:, 8], stats.clipped.double().view(2, 2).sum(1))
    torch.testing.assert_close(metrics.current[:, -1], stats.loser_scale.double().view(2, 2).sum(1))
    assert stats.loser_scale.lt(1).any()


@pytest.mark.parametrize("value", ["1", "-0.5", '"half"', "true"])
def test_what_is_no_share_is_refused(raw_config, write_config, value):
    with pytest.raises(UserError, match=r"'loss\.winner_preserving' must be a number >= 0, < 1 or null, got"):
        load(write_config(raw_config), [f"loss.winner_preserving={value}"])
