"""The trainer as a user runs it: processes, checkpoints, exports."""

import copy
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import commands
from tests.helpers.training import weights


def base_weights(embedded_folder):
    return load_file(embedded_folder / "pipeline/unet/diffusion_pytorch_model.safetensors")


def variant(raw, **changes):
    """A copy of a configuration with `section__key=value` changes."""
    raw = copy.deepcopy(raw)
    for path, value in changes.items():
        section, key = path.split("__")
        raw[section][key] = value
    return raw


def test_run_interrupted_run_and_two_ranks_agree(raw_config, launch, read_metrics, embedded_folder, tmp_path):
    from diffusers import DiffusionPipeline

    whole = variant(raw_config, train__output_dir=str(tmp_path / "whole"))
    launch(whole)
    records = read_metrics(whole)
    assert [record["step"] for record in records] == list(range(6))
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert records[0]["delta_w"] == pytest.approx(0, abs=1e-6)
    assert all({"loss", "accuracy", "margin"} <= record.keys() for record in records)
    assert [record["lr"] for record in records] == [1e-4] * 6  # as configured, not scaled by batch
    assert sum(part["pairs"] for part in records[1]["bins"]) == 8
    base, trained = base_weights(embedded_folder), weights(whole)
    assert all(not torch.equal(base[name], trained[name]) for name in base)
    pipeline = DiffusionPipeline.from_pretrained(Path(whole["train"]["output_dir"]) / "export")
    assert torch.equal(pipeline.unet.conv_in.weight.data, trained["conv_in.weight"])
    saved = sorted(path.name for path in (tmp_path / "whole/checkpoints").iterdir())
    assert saved == ["latest", "step-000003", "step-000006"]
    resolved = json.loads((tmp_path / "whole/checkpoints/step-000006/config.json").read_text())
    assert resolved["loss"]["ratio_scale"] == 200.0

    # three steps, then --resume to six: the same bits
    parts = variant(raw_config, train__output_dir=str(tmp_path / "parts"), train__max_steps=3)
    launch(parts)
    refused = launch(parts, check=False)
    assert refused.returncode != 0
    assert "pass --resume to go on" in refused.stderr
    parts["train"]["max_steps"] = 6
    launch(parts, "--resume", own_process=True)
    assert [record["step"] for record in read_metrics(parts)] == list(range(6))
    resumed = weights(parts)
    assert all(torch.equal(resumed[name], trained[name]) for name in trained)

    # two ranks under ZeRO-2 with accumulation see the same pairs and draws
    two = variant(
        raw_config,
        train__output_dir=str(tmp_path / "two"),
        train__pairs_per_micro_batch=1,
    ) | {"deepspeed": {"zero_optimization": {"stage": 2}}}
    launch(two, ranks=2, own_process=True)
    for ours, theirs in zip(read_metrics(two), records, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["margin"] == pytest.approx(theirs["margin"], rel=1e-2, abs=1e-5)
    distributed = weights(two)
    # AdamW magnifies the rounding of near-zero gradients, so single elements may differ: compare the mass of movement
    moved = sum((trained[name] - base[name]).abs().sum() for name in base)
    apart = sum((trained[name] - distributed[name]).abs().sum() for name in base)
    assert apart < 0.01 * moved


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_behind_a_step_with_a_checkpoint(raw_config, write_config, read_metrics, asked):
    """Not behind the interval of records or of checkpoints, which is far off."""
    raw = variant(raw_config, train__max_steps=100_000, train__checkpoint_every=100_000, log__every=100_000)
    with commands.begun("train", "--config", str(write_config(raw))) as run:
        run.wait_for("train: ")
        run.process.send_signal(asked)
        said = run.end()
    assert run.process.returncode == 128 + asked
    done = read_metrics(raw)[-1]["step"] + 1
    assert "stopping after this step, again to stop now\n" in said
    assert said.endswith(f"fdpo train: stopped after step {done}: --resume goes on from step-{done:06d}\n")
    folder = Path(raw["train"]["output_dir"])
    assert (folder / "checkpoints/latest").read_text().strip() == f"step-{done:06d}"
    assert not (folder / "export").exists()


def test_lora_with_the_adapter_as_reference(raw_config, launch, read_metrics, embedded_folder):
    raw = variant(raw_config, model__train="lora") | {"reference": {"mode": "adapter"}}
    launch(raw)
    records = read_metrics(raw)
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert records[-1]["margin"] != 0
    export = Path(raw["train"]["output_dir"]) / "export"
    base, merged = base_weights(embedded_folder), weights(raw)
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert base.keys() == merged.keys()
    assert changed
    assert all("attn" in name for name in changed)

    # the adapter by itself gives the same weights through diffusers' own loader
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(embedded_folder / "pipeline")
    pipeline.load_lora_weights(export, weight_name="pytorch_lora_weights.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    state = pipeline.unet.state_dict()
    for name in changed:
        torch.testing.assert_close(state[name], merged[name], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("dtype", "optimizer"), [("fp32", "adamw"), ("bf16", "adamw"), ("bf16", "adamw8bit_bnb"), ("bf16", "adamw8bit")]
)
def test_every_stage_and_dtype(raw_config, launch, read_metrics, stage, dtype, optimizer):
    raw = variant(raw_config, model__dtype=dtype, optimizer__type=optimizer, train__pairs_per_micro_batch=1)
    raw |= {"deepspeed": {"zero_optimization": {"stage": stage}}}
    raw["train"]["ema_decay"] = 0.5
    raw["model"]["gradient_checkpointing"] = True
    raw["log"] |= {"samples_every": 3, "prompts": ["a handwritten two"], "images_per_prompt": 1, "sampling_steps": 2}
    launch(raw, ranks=2)
    assert all(math.isfinite(record["loss"]) for record in read_metrics(raw))
    assert same_as_the_average(raw)


def same_as_the_average(raw):
    """Whether the export, in float32 as the base's files are, holds the average to the bit, however it was sharded."""
    checkpoint = Path(raw["train"]["output_dir"]) / "checkpoints/step-000006"
    parts = [load_file(file) for file in sorted(checkpoint.glob("ema-rank*.safetensors"))]
    exported = weights(raw)
    sharded = parts[0]["conv_in.weight"].shape != exported["conv_in.weight"].shape
    for name, value in exported.items():
        average = torch.cat([part[name] for part in parts])[: value.numel()] if sharded else parts[0][name].flatten()
        if not torch.equal(value.flatten(), average):
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_slow_average_stays_at_the_base(raw_config, launch, embedded_folder, stage):
    raw = variant(raw_config, train__ema_decay=0.999999, train__pairs_per_micro_batch=2, optimizer__lr=1e-2)
    raw |= {"deepspeed": {"zero_optimization": {"stage": stage}}}
    launch(raw, ranks=2)
    base, averaged = base_weights(embedded_folder), weights(raw)
    assert max((base[name] - averaged[name]).abs().max() for name in base) < 1e-5


@pytest.mark.slow
def test_live_reference_equals_cached(raw_config, launch, read_metrics, tmp_path):
    for mode in ("cached", "live"):
        raw = variant(raw_config, train__output_dir=str(tmp_path / mode))
        raw["reference"] = {"mode": mode, "visits": 2}
        launch(raw)
        if mode == "cached":
            want = read_metrics(raw)
    for ours, theirs in zip(read_metrics(raw), want, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.family=sd9", "unknown model.family 'sd9'"),
        ("model.base=./nowhere", "neither a folder nor a hub name"),
        ("data.source=./nowhere", "data.source './nowhere' is not here"),
    ],
)
def test_bad_input_is_one_sentence(raw_config, launch, override, says):
    done = launch(raw_config, "--set", override, own_process="family" in override, check=False)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
