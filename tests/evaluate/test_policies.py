"""What `fdpo sample` draws with: adapters in checkpoints, and the other family."""

from pathlib import Path

import numpy as np
from PIL import Image

from fdpo_fast.models.presets import build


def drawn(raw, model):
    folder = Path(raw["train"]["output_dir"]) / "evaluation" / model
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))])


def test_a_checkpoint_brings_its_own_adapter(raw_config, command):
    """Merged in the export; as layers of their own in the checkpoint, whose alpha is not that of the command's file."""
    raw_config["evaluate"] = {"prompts": ["a handwritten two"], "sampling_steps": 2, "images_per_prompt": 2}
    raw_config["model"] |= {"train": "lora", "lora": {"rank": 4, "alpha": 64.0}}
    raw_config["reference"] = {"mode": "adapter"}
    raw_config["optimizer"]["lr"] = 1e-2
    command(raw_config, "train")
    run = Path(raw_config["train"]["output_dir"])
    raw_config["model"]["lora"] = {"rank": 8, "alpha": 1.0}
    last = f"last={run / 'checkpoints/step-000006'}"
    command(raw_config, "sample", "--checkpoint", f"export={run}", "--checkpoint", last)
    assert abs(drawn(raw_config, "export") - drawn(raw_config, "last")).max() <= 1
    assert abs(drawn(raw_config, "export") - drawn(raw_config, "base")).max() > 10


def test_a_checkpoint_brings_its_average(raw_config, command):
    raw_config["evaluate"] = {"prompts": ["a handwritten two"], "sampling_steps": 2, "images_per_prompt": 2}
    raw_config["train"]["ema_decay"] = 0.5
    raw_config["optimizer"]["lr"] = 1e-3
    command(raw_config, "train")
    run = Path(raw_config["train"]["output_dir"])
    last = f"last={run / 'checkpoints/step-000006'}"
    command(raw_config, "sample", "--no-base", "--checkpoint", f"export={run}", "--checkpoint", last)
    assert (drawn(raw_config, "export") == drawn(raw_config, "last")).all()


def test_sdxl(tiny_config, command, tmp_path):
    raw = tiny_config("sdxl", tmp_path / "no pairs are read")
    raw["evaluate"] = {"prompts": ["a photo of a cat"], "sampling_steps": 2, "images_per_prompt": 2, "guidance": 3.0}
    other = build("tiny_sdxl", tmp_path / "other", seed=1)
    command(raw, "sample", "--checkpoint", str(other))
    assert drawn(raw, "base").shape == (2, 64, 64, 3)
    assert abs(drawn(raw, "policy") - drawn(raw, "base")).max() > 10
