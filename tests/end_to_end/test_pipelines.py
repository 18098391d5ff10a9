"""From files in every format to an export that diffusers loads: both families, full and LoRA, any ZeRO stage."""

import copy
import math
from pathlib import Path

import pytest
import torch

from tests.helpers.drawn import draw
from tests.helpers.pictures import FORMATS, as_pickapic, difficult_rows

FAST = {("sd", "lora", "fp32", 0, 1), ("sdxl", "full", "bf16", 2, 2)}
CASES = [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
    for family in ("sd", "sdxl")
    for train in ("full", "lora")
    for dtype in ("fp32", "bf16")
    for stage in (0, 1, 2, 3)
    for ranks in (1, 2)
    for case in [(family, train, dtype, stage, ranks)]
] + [
    pytest.param(family, *case, marks=[] if case == ("lora", "fp32", 0, 1) else pytest.mark.slow)
    for family in ("sd3", "flux", "z_image")
    for case in (
        ("lora", "fp32", 0, 1),
        ("full", "bf16", 0, 1),
        ("full", "fp32", 1, 2),
        ("lora", "bf16", 2, 2),
        ("full", "bf16", 3, 2),
        ("lora", "fp32", 3, 1),
    )
]


@pytest.mark.parametrize(("family", "train", "dtype", "stage", "ranks"), CASES)
def test_cache_train_export(
    tiny_config, launch, command, read_metrics, pipelines, tmp_path, family, train, dtype, stage, ranks
):
    raw = tiny_config(family, as_pickapic(tmp_path, difficult_rows()))
    raw["model"] |= {"train": train, "dtype": dtype}
    raw["data"]["ties"] = "half"
    raw["train"]["pairs_per_micro_batch"] = 2
    raw["deepspeed"] = {"zero_optimization": {"stage": stage}}
    command(raw, "cache")
    said = launch(raw, ranks=ranks).stdout
    assert "caching" not in said  # both commands speak of the same caches
    records = read_metrics(raw)
    assert [record["step"] for record in records] == list(range(6))
    assert all(math.isfinite(record["loss"]) for record in records)
    export = Path(raw["train"]["output_dir"]) / "export"
    base = draw(pipelines[family])
    ours = draw(export)
    assert ours.isfinite().all()
    assert not torch.equal(ours, base)
    if train == "lora":  # the adapter by itself, on the base, draws what the merged weights draw
        alone = draw(pipelines[family], lora=export)
        tolerance = {"fp32": 1e-3, "bf16": 0.1}[dtype]  # bf16 weights are rounded when the adapter is merged
        assert (alone - ours).abs().max() < tolerance * max(ours.abs().max().item(), 1)
        assert not torch.equal(alone, base)


FORMAT_CASES = [name if name == "rankings" else pytest.param(name, marks=pytest.mark.slow) for name in FORMATS]


@pytest.mark.parametrize("name", FORMAT_CASES)
def test_every_format_trains(tiny_config, launch, read_metrics, tmp_path, name):
    raw = tiny_config("sdxl", FORMATS[name](tmp_path, difficult_rows()))
    launch(raw)  # one command: the caches are built on the way
    assert len(read_metrics(raw)) == 6


def variant(raw, folder, **changes):
    raw = copy.deepcopy(raw)
    raw["train"]["output_dir"] = str(folder)
    for path, value in changes.items():
        section, key = path.split("__")
        raw[section][key] = value
    return raw


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_cached_equals_live_over_fifty_steps(tiny_config, launch, read_metrics, tmp_path, family):
    raw = tiny_config(family, as_pickapic(tmp_path, difficult_rows()))
    raw["train"] |= {"max_steps": 50, "checkpoint_every": 50}
    raw["optimizer"]["lr"] = 1e-4
    losses = {}
    for mode in ("cached", "live"):
        run = variant(raw, tmp_path / mode, reference__mode=mode)
        launch(run)
        losses[mode] = [record["loss"] for record in read_metrics(run)]
    assert max(losses["cached"]) - min(losses["cached"]) > 1e-2
    for ours, theirs in zip(losses["cached"], losses["live"], strict=True):
        assert ours == theirs  # the bits; 1e-6 is what was asked for


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_trajectory_depends_on_neither_ranks_nor_micro_batch(tiny_config, launch, read_metrics, tmp_path, family):
    raw = tiny_config(family, as_pickapic(tmp_path, difficult_rows()))
    raw["train"] |= {"max_steps": 20, "checkpoint_every": 20}
    raw["optimizer"]["lr"] = 2e-5  # the largest in use
    losses = {}
    for ranks, micro in ((1, 4), (2, 2), (1, 1)):
        run = variant(raw, tmp_path / f"{ranks}-{micro}", train__pairs_per_micro_batch=micro)
        launch(run, ranks=ranks)
        losses[ranks, micro] = [record["loss"] for record in read_metrics(run)]
    for other in ((2, 2), (1, 1)):
        for ours, theirs in zip(losses[other], losses[1, 4], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data__buckets": True, "data__bucket_step": 16, "data__flip": 0.5, "data__crop": "random"},
        {"data__latents": "moments", "data__cache_dtype": "fp16"},
        {"model__channels_last": True, "model__compile": True},
        {"model__gradient_checkpointing": True, "model__compile": True, "model__train": "lora"},
    ],
)
def test_options_train_and_resume(tiny_config, launch, read_metrics, tmp_path, changes):
    raw = tiny_config("sdxl", as_pickapic(tmp_path, difficult_rows()))
    whole = variant(raw, tmp_path / "whole", **changes)
    launch(whole)
    parts = variant(raw, tmp_path / "parts", **changes, train__max_steps=3)
    launch(parts)
    parts["train"]["max_steps"] = 6
    launch(parts, "--resume")
    losses = [[record["loss"] for record in read_metrics(run)] for run in (whole, parts)]
    assert losses[0] == losses[1]


def test_a_resumed_run_refuses_other_data(tiny_config, command, tmp_path):
    raw = tiny_config("sd", as_pickapic(tmp_path, difficult_rows()))
    raw["train"]["max_steps"] = 3
    command(raw, "train")
    raw["data"]["resolution"] = 32
    with pytest.raises(SystemExit, match=r"trained with another pairs cache: 'geometry.resolution' is 64 there and 32"):
        command(raw, "train", "--resume")
