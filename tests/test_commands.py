"""`fdpo cache`, `cache verify`, `data check` and `calibrate` as a user runs them."""

import json
from pathlib import Path

import pytest
import torch
from pictures import BLUE, FORMATS, RED, as_pickapic, as_rankings, difficult_rows, files, noisy_jpeg, write
from safetensors.torch import load_file

from fdpo_fast.cache.shards import Shard
from fdpo_fast.cli import main
from fdpo_fast.compare.calibrate import by_timestep, fit
from fdpo_fast.config.schema import Data, Loss
from fdpo_fast.data.check import examine
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.loss.divergences import DIVERGENCES

# --- cache ------------------------------------------------------------------------------------------------------


def test_cache_fills_verifies_and_stays(command, tiny_config, tmp_path):
    raw = tiny_config("sdxl", as_pickapic(tmp_path, difficult_rows()))
    said = command(raw, "cache")
    assert "24 rows, 21 pairs, 2 ties dropped, refused: 1 x an image does not decode" in said
    assert said.count(str(tmp_path / "cache")) >= 6
    first = files(tmp_path / "cache")
    assert "caching" not in command(raw, "cache")
    said = command(raw, "cache", "verify")
    assert "checksums match" in said
    for kind in ("latents", "text", "reference"):
        assert f"{kind}: largest difference" in said
    assert files(tmp_path / "cache") == first


def test_verify_finds_what_a_checksum_cannot(command, tiny_config, tmp_path):
    """Values that were written wrong, checksum and all."""
    raw = tiny_config("sd", as_pickapic(tmp_path, difficult_rows()))
    command(raw, "cache")
    folder = next(path for path in (tmp_path / "cache").glob("reference-*") if path.is_dir())
    for path in folder.glob("*.safetensors"):
        Shard(columns={"error": load_file(path)["error"] * 1.01}).save(path)
    with pytest.raises(SystemExit, match=r"fdpo cache verify: .*reference-.* do not hold what is computed now"):
        command(raw, "cache", "verify")


def test_the_trainer_refuses_another_cache_than_the_one_asked_for(command, tiny_config, tmp_path):
    raw = tiny_config("sd", as_pickapic(tmp_path, difficult_rows()))
    command(raw, "cache")
    raw["reference"]["visits"] = 3
    with pytest.raises(
        SystemExit, match=r"fdpo train: the reference cache made by `fdpo cache`.*'visits' is 2 there and 3"
    ):
        command(raw, "train")
    raw["reference"]["visits"] = 2
    unet = Path(raw["model"]["base"]) / "unet"
    before = (unet / "config.json").read_bytes()
    try:  # another model under the same name
        (unet / "config.json").write_bytes(before + b"\n")
        with pytest.raises(SystemExit, match=r"the reference cache .* 'unet' is"):
            command(raw, "train")
    finally:
        (unet / "config.json").write_bytes(before)


# --- data check -------------------------------------------------------------------------------------------------


def test_data_check_reports_what_is_there(command, tiny_config, tmp_path):
    rows = difficult_rows()
    rows += [rows[0], ("one image", RED, RED, 1.0), ("gone", RED[:60], BLUE, 0.0)]
    raw = tiny_config("sd", as_pickapic(tmp_path, rows))
    report = tmp_path / "report.json"
    said = command(raw, "data", "check", "--json", str(report))
    found = json.loads(report.read_text())
    assert (found["rows"], found["pairs"], found["ties"]) == (27, 23, 2)
    assert (found["repeated_pairs"], found["same_image_twice"]) == (1, 1)
    assert (found["first_preferred"], found["second_preferred"]) == (11, 12)
    assert [row["place"] for row in found["refused"]] == ["pairs.parquet row 3", "pairs.parquet row 26"]
    assert found["sizes"]["1x1"] == 1
    assert found["sizes"]["96x80"] == 23
    assert found["smaller_than_resolution"] == 2
    assert found["long_captions"] == 3
    for line in ("rows        27", "image 0 preferred in 11 (47.8%)", "pairs.parquet row 26: an image does not decode"):
        assert line in said
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_data_check_of_every_format(command, tiny_config, tmp_path, name):
    said = command(tiny_config("sd", FORMATS[name](tmp_path, difficult_rows())), "data", "check")
    assert ("the format has no order" in said) == (name == "folders")
    assert ("refused     none" in said) == (name == "latents")


def test_data_check_of_nothing(command, tiny_config, tmp_path):
    raw = tiny_config("sd", write(tmp_path / "x.parquet", [("a", b"", BLUE, 1.0)]))
    with pytest.raises(SystemExit, match=r"fdpo data check: data.source .* gives no pair"):
        command(raw, "data", "check")
    with pytest.raises(SystemExit, match="the command is `fdpo data check"):
        command(raw, "data", "chekc")


def test_ties_of_rankings_are_counted_once(tmp_path):
    rows = [("x", noisy_jpeg(2 * i), noisy_jpeg(2 * i + 1), 1.0) for i in range(4)]
    source = open_source(Data(source=str(as_rankings(tmp_path, rows)), ties="half"))
    found = examine(source.read(0, len(source)), 64)
    assert (found.pairs, found.ties) == (5, 1)  # ranks 2 1 3 and 2 1 2
    assert found.distinct_images == 6


# --- calibrate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
def test_calibrated_strengths_do_what_was_asked(name):
    generator = torch.Generator().manual_seed(0)
    delta = 3e-3 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    found = fit(DIVERGENCES[name], delta, median_u=0.7, weight=0.35)
    u = -found["ratio_scale"] * delta
    margin = found["beta"] * (DIVERGENCES[name](u[:, 0]) - DIVERGENCES[name](u[:, 1]))
    assert u.abs().median().item() == pytest.approx(0.7)
    weight = torch.sigmoid(-margin.abs()).quantile(0.5, interpolation="higher").item()
    assert weight == pytest.approx(found["median_weight"]) == pytest.approx(0.35)
    assert found["accuracy"] == pytest.approx((margin > 0).double().mean().item())


def test_strength_is_that_of_diffusion_dpo_near_the_reference():
    delta = torch.tensor([[1e-3, -1e-3]] * 3, dtype=torch.float64)
    found = {name: fit(DIVERGENCES[name], delta * 1e-6, 1e-4, 0.4)["strength"] for name in DIVERGENCES}
    assert max(found.values()) == pytest.approx(min(found.values()), rel=1e-3)
    kl = fit(DIVERGENCES["reverse_kl"], delta, 1.0, 0.4)
    assert kl["strength"] == pytest.approx(kl["beta"] * kl["ratio_scale"])


def test_a_policy_that_did_not_move_is_an_error():
    with pytest.raises(ValueError, match=r"the median |delta| is 0.0"):
        fit(DIVERGENCES["reverse_kl"], torch.zeros(4, 2), 1.0, 0.4)


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


def test_calibrate_looks_at_a_part_of_a_large_source(command, tiny_config, tmp_path):
    rows = [(f"picture {i}", noisy_jpeg(2 * i % 10), noisy_jpeg(2 * i % 7), 1.0) for i in range(60)]
    raw = tiny_config("sd", write(tmp_path / "x.parquet", rows))
    raw["train"]["pairs_per_micro_batch"] = 2
    said = command(raw, "calibrate", "--pairs", "4", "--steps", "2")
    assert "caching latents: 16 entries" in said


def test_a_slip_of_ours_is_no_mistake_of_the_users(monkeypatch, raw_config, write_config):
    from fdpo_fast.memory import plan

    def slip(*arguments, **options):
        zip((1,), (), strict=True).__next__()

    monkeypatch.setattr(plan, "show", slip)
    with pytest.raises(ValueError, match="zip"):
        main(["plan", "--config", str(write_config(raw_config))])
