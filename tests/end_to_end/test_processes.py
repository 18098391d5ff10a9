"""Models of other noise processes by their scheduler alone: from caches to a resumed run and an export that draws."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from fdpo_fast.models.presets import build
from tests.helpers.drawn import draw
from tests.helpers.pictures import as_pickapic, difficult_rows
from tests.helpers.training import weights

TURBO = {"density": "only", "only": [249, 499, 749, 999]}
REFINER = {"density": "range", "range": [0, 200]}
KINDS = {
    "its own": (None, {}),
    "flow": ("flow", {}),
    "v": ("v_prediction", {}),
    "v, zero SNR": ("v_zero_snr", {}),
    "sample": ("sample", {}),
    "turbo": ("epsilon", TURBO),
    "refiner": ("epsilon", REFINER),
    "flow, mode": ("flow", {"density": "mode", "scale": 1.0}),
}
FAST = {("sdxl", "flow", "full", "fp32", 0, 1)}
CASES = [
    *FAST,
    *[("sdxl", kind, "full", "bf16", 2, 2) for kind in ("v, zero SNR", "turbo", "refiner")],
    *[("sd", kind, "lora", "fp32", stage, 1) for kind, stage in zip([*KINDS][1:], (0, 1, 2, 3, 1, 0, 2), strict=True)],
    *[("sdxl", "flow", train, "bf16", 3, 2) for train in ("full", "lora")],
    *[
        (family, "its own", train, "bf16", stage, 2)
        for family in ("sd3", "flux", "z_image")
        for train, stage in (("full", 0), ("full", 3), ("lora", 1))
    ],
]


@pytest.fixture
def flow_config(tiny_config, tmp_path):
    """A configuration over a tiny pipeline of a kind of process."""

    def make(family, kind):
        prediction, timesteps = KINDS[kind]
        raw = tiny_config(family, as_pickapic(tmp_path, difficult_rows()))
        raw["model"]["base"] = str(build(f"tiny_{family}", tmp_path / "base", prediction=prediction))
        raw["reference"]["timesteps"] = timesteps
        return raw

    return make


@pytest.mark.parametrize(
    ("family", "kind", "train", "dtype", "stage", "ranks"),
    [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_cache_train_resume_export(
    flow_config, launch, read_metrics, tmp_path, family, kind, train, dtype, stage, ranks
):
    raw = flow_config(family, kind)
    raw["model"] |= {"train": train, "dtype": dtype}
    raw["train"]["pairs_per_micro_batch"] = 2
    raw["deepspeed"] = {"zero_optimization": {"stage": stage}}
    whole, parts = copy.deepcopy(raw), copy.deepcopy(raw)
    whole["train"]["output_dir"], parts["train"]["output_dir"] = str(tmp_path / "whole"), str(tmp_path / "parts")
    launch(whole, ranks=ranks)
    records = read_metrics(whole)
    assert records[0]["margin"] == 0
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert all(math.isfinite(record["loss"]) for record in records)
    parts["train"]["max_steps"] = 3
    launch(parts, ranks=ranks)
    parts["train"]["max_steps"] = 6
    launch(parts, "--resume", ranks=ranks)
    ours, theirs = weights(whole), weights(parts)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    export = tmp_path / "whole/export"
    scheduler = json.loads((export / "scheduler/scheduler_config.json").read_text())
    assert scheduler == json.loads((Path(raw["model"]["base"]) / "scheduler/scheduler_config.json").read_text())
    drawn = draw(export)
    assert drawn.isfinite().all()
    assert not torch.equal(drawn, draw(raw["model"]["base"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind", "buckets"),
    [
        *[("sdxl", "flow", False), ("sdxl", "v, zero SNR", False), ("flux", "its own", True)],
        *((flow, "its own", False) for flow in ("sd3", "flux", "z_image")),
    ],
)
def test_cached_equals_live_over_fifty_steps(flow_config, launch, read_metrics, tmp_path, family, kind, buckets):
    """Over buckets, too: Flux shifts its schedule by the tokens of an image, so that each has its own."""
    raw = flow_config(family, kind)
    raw["data"] |= {"buckets": buckets, "bucket_step": 16}
    raw["train"] |= {"max_steps": 50, "checkpoint_every": 50}
    raw["optimizer"]["lr"] = 1e-4
    losses = {}
    for mode in ("cached", "live"):
        run = copy.deepcopy(raw)
        run["reference"]["mode"], run["train"]["output_dir"] = mode, str(tmp_path / mode)
        launch(run)
        losses[mode] = [record["loss"] for record in read_metrics(run)]
    assert max(losses["cached"]) - min(losses["cached"]) > 1e-3
    assert losses["cached"] == losses["live"]  # the bits


def test_the_density_is_in_the_manifest_and_in_the_draws(flow_config, command, read_metrics, tmp_path):
    raw = flow_config("sd", "turbo")
    command(raw, "cache")
    (manifest,) = (tmp_path / "cache").glob("reference-*/manifest.json")
    assert json.loads(manifest.read_text())["timesteps"] == TURBO
    raw["reference"]["timesteps"] = {}
    command(raw, "cache")  # other draws are another cache
    found = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("reference-*/manifest.json")]
    assert sorted("timesteps" in one for one in found) == [False, True]
    raw["reference"]["timesteps"] = {"density": "only", "only": [250]}
    raw["log"]["timestep_bins"] = 4
    command(raw, "cache")
    command(raw, "train")
    parts = [part for record in read_metrics(raw) for part in record.get("bins", [])]
    assert {tuple(part["timesteps"]) for part in parts} == {(250, 500)}
    assert sum(part["pairs"] for part in parts) == 6 * 4


@pytest.mark.parametrize(
    ("timesteps", "says"),
    [
        ({"density": "only"}, "reference.timesteps.only is missing: density 'only' takes it"),
        ({"density": "uniform", "mean": 0.5}, "reference.timesteps.mean is set but the density is 'uniform'"),
        ({"density": "only", "only": [249, 1000]}, "1000 is none of the timesteps 0 to before 1000"),
        ({"density": "range", "range": [200, 200]}, "the range 200 to before 200 is none of the timesteps"),
        ({"density": "weights", "weights": [1.0, 2.0]}, "there are 2 weights for 1000 timesteps"),
        ({"density": "weights", "weights": [0.0] * 1000}, "weights must be finite and not negative, and one at least"),
        ({"density": "beta"}, "logit_normal"),
    ],
)
def test_a_density_that_cannot_be_is_a_sentence(flow_config, command, tmp_path, timesteps, says):
    raw = flow_config("sd", "flow")
    raw["reference"]["timesteps"] = timesteps
    with pytest.raises(SystemExit, match=says):
        command(raw, "train")
    assert not list((tmp_path / "cache").glob("*"))  # nothing was computed
