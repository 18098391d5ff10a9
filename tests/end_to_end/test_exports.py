"""What a run exports against what it has trained, both in float32."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fdpo_fast.config.run import Config
from fdpo_fast.models import load_family
from fdpo_fast.models.trainable import prepare
from tests.helpers.pictures import as_pickapic, difficult_rows
from tests.helpers.predictions import share, unet_of

CASES = {
    "LoRA": {"model": {"train": "lora"}},
    "full": {"optimizer": {"type": "adamw"}},
    "8-bit": {"optimizer": {"type": "adamw8bit"}, "deepspeed": {"bf16": {"enabled": False}}},
    "average": {"optimizer": {"type": "adamw8bit"}, "train": {"ema_decay": 0.9}},
    "LoRA, average": {"model": {"train": "lora"}, "train": {"ema_decay": 0.9}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_export_is_the_policy(tiny_config, launch, pipelines, tmp_path, case):
    raw = tiny_config("sdxl", as_pickapic(tmp_path, difficult_rows()))
    raw["model"]["dtype"] = "bf16"
    raw["optimizer"]["lr"] = 1e-4  # below it the rounding of a prediction in float32 is as large as what changes
    for section, values in CASES[case].items():
        raw.setdefault(section, {}).update(values)
    said = launch(raw).stdout
    assert "as far as training" not in said
    config, run = Config.model_validate(raw), Path(raw["train"]["output_dir"])
    family = load_family(config.model)
    policy, start = family.denoiser(torch.float32), family.denoiser(torch.float32)
    prepare(policy, config.model)
    if config.model.train == "full":  # it started from rounded weights
        start = start.bfloat16().float()
    checkpoint = run / "checkpoints/step-000006"
    state = torch.load(checkpoint / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    if config.model.train == "lora":  # what the adapter is beside does not count
        state = {name: value for name, value in state.items() if ".lora_" in name}
    if config.train.ema_decay:
        state |= load_file(checkpoint / "ema-rank00000.safetensors")
    policy.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    assert share(unet_of(run / "export"), policy, start) > 0.99
