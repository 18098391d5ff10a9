"""Strengths that do what was asked of them."""

import json
from pathlib import Path

import pytest
import torch

from fdpo_fast.compare.calibrate import Aim, by_timestep, fit, ordered
from fdpo_fast.config.schema import Loss
from fdpo_fast.loss.clipping import clipped
from fdpo_fast.loss.divergences import DIVERGENCES
from tests.helpers.pictures import (
    as_pickapic,
    difficult_rows,
    noisy_jpeg,
    write,
)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("target", [0.0, 0.8])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_calibrated_strengths_do_what_was_asked(name, target, clip):
    generator = torch.Generator().manual_seed(0)
    delta = 3e-3 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    found = fit(clipped(DIVERGENCES[name], clip), target, delta, median_u=0.7, weight=0.35)
    u = -found["ratio_scale"] * delta
    inside = u if clip is None else u.clamp(-clip, clip)
    h = DIVERGENCES[name](inside) + DIVERGENCES[name].slope(inside) * (u - inside)
    margin = found["beta"] * (h[:, 0] - h[:, 1])
    assert u.abs().median().item() == pytest.approx(0.7)
    weight = torch.sigmoid(target - margin.abs()).quantile(0.5, interpolation="higher").item()
    assert weight == pytest.approx(found["median_weight"]) == pytest.approx(0.35)
    assert (found["clipped"] > 0.5) == (clip is not None)
    assert found["accuracy"] == pytest.approx((margin > 0).double().mean().item())


def test_strength_is_that_of_diffusion_dpo_near_the_reference():
    delta = torch.tensor([[1e-3, -1e-3]] * 3, dtype=torch.float64)
    found = {name: fit(DIVERGENCES[name], 0.0, delta * 1e-6, 1e-4, 0.4)["strength"] for name in DIVERGENCES}
    assert max(found.values()) == pytest.approx(min(found.values()), rel=1e-3)
    kl = fit(DIVERGENCES["reverse_kl"], 0.0, delta, 1.0, 0.4)
    assert kl["strength"] == pytest.approx(kl["beta"] * kl["ratio_scale"])


def test_a_policy_that_did_not_move_is_an_error():
    with pytest.raises(ValueError, match=r"the median |delta| is 0.0"):
        fit(DIVERGENCES["reverse_kl"], 0.0, torch.zeros(4, 2), 1.0, 0.4)


def test_bins_of_timesteps():
    delta = torch.arange(12, dtype=torch.float64).view(6, 2)
    rows = by_timestep(delta, torch.tensor([0, 99, 500, 501, 999, 998]), 2, 1000)
    assert [(row["timesteps"], row["pairs"]) for row in rows] == [([0, 500], 2), ([500, 1000], 4)]
    assert rows[0]["q10_50_90"][1] == 1.5


def test_calibrate_prints_the_lines_of_the_configuration(command, tiny_config, tmp_path):
    raw = tiny_config("sdxl", as_pickapic(tmp_path, difficult_rows()))
    out = tmp_path / "figures.json"
    said = command(raw, "calibrate", "--pairs", "8", "--steps", "3", "--median-u", "2", "--json", str(out))
    figures = json.loads(out.read_text())
    assert figures["median_abs_u"] == pytest.approx(2)
    assert figures["median_weight"] == pytest.approx(0.4)
    line = next(line for line in said.splitlines() if '"loss"' in line)
    loss = json.loads("{" + line + "}")["loss"]
    assert Loss(**loss).ratio_scale == pytest.approx(figures["ratio_scale"], rel=1e-3)
    assert "diffusion_dpo" in said
    assert figures["elements"] == 4 * 32 * 32
    with pytest.raises(SystemExit, match=r"--weight 0.7 must lie between 0 and 0.5"):
        command(raw, "calibrate", "--weight", "0.7")
    with pytest.raises(SystemExit, match=r"--policy .* has no model_index.json"):
        command(raw, "calibrate", "--policy", str(tmp_path))


@pytest.mark.parametrize(
    ("accuracy", "pairs", "policy", "means"),
    [
        (0.46, 64, None, "46.0% of 64 not trained on; chance gives 50 % +- 12%: to be expected of so few steps"),
        (0.46, 64, Path("run"), "46.0% of 64; chance gives 50 % +- 12%: no better than chance"),
        (0.70, 64, None, "it has learnt what is preferred"),
        (0.30, 64, None, "worse than chance"),
        (0.46, 6400, None, "worse than chance"),
    ],
)
def test_what_the_share_ordered_right_means(accuracy, pairs, policy, means):
    assert means in ordered(accuracy, pairs, Aim(pairs, 20, policy, 1.0, 0.4))


def test_calibrate_measures_a_run_with_its_adapter(command, tiny_config, tmp_path):
    raw = tiny_config("sdxl", as_pickapic(tmp_path, difficult_rows()))
    raw["model"] |= {"train": "lora"}
    command(raw, "train")
    said = command(raw, "calibrate", "--pairs", "4", "--policy", raw["train"]["output_dir"])
    assert '"ratio_scale"' in said


def test_calibrate_looks_at_a_part_of_a_large_source(command, tiny_config, tmp_path):
    rows = [(f"picture {i}", noisy_jpeg(2 * i % 10), noisy_jpeg(2 * i % 7), 1.0) for i in range(60)]
    raw = tiny_config("sd", write(tmp_path / "x.parquet", rows))
    raw["train"]["pairs_per_micro_batch"] = 2
    said = command(raw, "calibrate", "--pairs", "4", "--steps", "2")
    assert "caching pairs: 16 rows" in said
    assert "caching latents: 5 images" in said  # in those rows, each once
