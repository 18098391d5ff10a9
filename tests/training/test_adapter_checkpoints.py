"""Checkpoints of an adapter hold the adapter, and those of older versions, which held the base too, go on."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fdpo_fast import checksums
from tests.helpers.training import weights


@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_checkpoint_holds_what_is_trained(tiny_config, launch, rows, tmp_path, stage):
    raw = tiny_config("sd", rows)
    raw["model"] |= {"train": "lora", "dtype": "bf16"}
    raw["deepspeed"] = {"zero_optimization": {"stage": stage}}
    whole, parts = copy.deepcopy(raw), copy.deepcopy(raw)
    whole["train"]["output_dir"], parts["train"]["output_dir"] = str(tmp_path / "whole"), str(tmp_path / "parts")
    launch(whole)
    parts["train"]["max_steps"] = 3
    launch(parts)
    checkpoint = tmp_path / "parts/checkpoints/step-000003"
    (path,) = checkpoint.glob("*model_states.pt")
    state = torch.load(path, map_location="cpu", weights_only=False)
    if stage < 3:
        assert state["module"]
        assert all("lora" in name for name in state["module"])
        if stage == 0:  # as before: the base's weights beside the adapter
            base = load_file(next(Path(raw["model"]["base"]).glob("unet/*.safetensors")))
            under = {".base_layer.".join(name.rsplit(".", 1)): value.bfloat16() for name, value in base.items()}
            names = {name.partition(".lora_")[0] for name in state["module"]}
            state["module"] |= {
                plain if plain.rpartition(".")[0] not in names else adapted: under[adapted]
                for plain, adapted in zip(base, under, strict=True)
            }
            facts = checksums.facts_of(checkpoint)
            torch.save(state, path)
            files = checksums.sums(checkpoint, checksums.names_in(checkpoint))
            checksums.write(checkpoint, files, **{key: facts[key] for key in facts if key != "files"})
    parts["train"]["max_steps"] = 6
    launch(parts, "--resume")
    ours, theirs = weights(whole), weights(parts)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def rows(tmp_path):
    from tests.helpers.pictures import as_pickapic, difficult_rows

    return as_pickapic(tmp_path, difficult_rows())
