"""How much of what LoRA learnt is left in weights that it is merged into.

`python -m benchmarks.export` trains a tiny SDXL with random weights, base and run in bf16, rank 8, at a rate of 1e-5,
and compares predictions, all computed in float32: 1 - |merged - policy| / |policy - base|, of 4 inputs. Rounded
stochastically is the mean of 8 seeds. Beside it the same of the weights, as the trainer states it of an export. Writes
results/export.csv.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from benchmarks.common.pairs import write_pairs
from benchmarks.common.tables import write_csv
from fdpo_fast.models import presets
from fdpo_fast.models.family import ADAPTER
from fdpo_fast.optim.eager import random_bits, round_randomly

RESULTS = Path(__file__).parent / "results/export.csv"
COLUMNS = ("steps", "stored", "of_output", "of_weights")
SEEDS = 8


def fdpo(folder: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "fdpo_fast.cli", *words, "--config", "run.json"], cwd=folder, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def prepare(folder: Path) -> None:
    """Make pairs, and a base whose files are in bf16."""
    write_pairs(folder / "pairs", 32, 64)
    made = presets.build("tiny_sdxl", folder / "float32")
    DiffusionPipeline.from_pretrained(made, torch_dtype=torch.bfloat16).save_pretrained(folder / "base")


def train(folder: Path, steps: int) -> dict[str, Path]:
    """Train for so many steps; returns the folders of two exports by their dtype."""
    config = {
        "model": {"family": "sdxl", "base": "base", "train": "lora"},
        "data": {"source": "pairs", "resolution": 64, "cache_dir": "cache"},
        "loss": {"beta": 2.0, "ratio_scale": 2500.0},
        "optimizer": {"type": "adamw8bit", "lr": 1e-5},
        "train": {"output_dir": f"run-{steps}", "max_steps": steps, "pairs_per_step": 4, "pairs_per_micro_batch": 4},
        "deepspeed": {"bf16": {"enabled": False}},
    }
    (folder / "run.json").write_text(json.dumps(config))
    export, kept = folder / f"run-{steps}/export", folder / f"bf16-{steps}"
    fdpo(folder, "train")
    export.rename(kept)
    fdpo(folder, "train", "--resume", "--set", "train.export_dtype=fp32")
    return {"bfloat16": kept, "float32": export}


def unet_of(folder: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32).eval()


@torch.no_grad()
def output(unet: Any) -> Tensor:
    """The predictions of a UNet for the same 4 inputs."""
    draw, config = torch.Generator().manual_seed(0), unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    added = {"text_embeds": torch.randn(4, pooled, generator=draw), "time_ids": torch.full((4, 6), 64.0)}
    text = torch.randn(4, 77, config.cross_attention_dim, generator=draw)
    noisy, timesteps = torch.randn(4, 4, 32, 32, generator=draw), torch.tensor([5, 300, 600, 990])
    return unet(noisy, timesteps, text, added_cond_kwargs=added).sample


def rounded(exact: dict[str, Tensor], base: dict[str, Tensor], dtype: torch.dtype, seed: int | None) -> dict:
    """The weights in a dtype: to nearest, or by random bits those that are not the base's."""
    stored = {}
    for number, (name, value) in enumerate(exact.items()):
        if seed is None or torch.equal(value, base[name]):
            stored[name] = value.to(dtype).float()
        else:
            bits = random_bits(seed, number, 0, 0, value.numel(), value.device).view(value.shape)
            stored[name] = round_randomly(value, bits, dtype).float()
    return stored


def change(state: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The length of the difference of two states."""
    return sum((state[name] - other[name]).double().square().sum().item() for name in state) ** 0.5


def measure(folder: Path, steps: int) -> list[tuple]:
    """Compare what is kept of a run, by how it is stored."""
    exports, base = train(folder, steps), unet_of(folder / "base")
    policy, unet = copy.deepcopy(base), copy.deepcopy(base)
    policy.load_lora_adapter(exports["float32"], weight_name=ADAPTER, prefix="unet")
    merged = copy.deepcopy(policy)
    merged.fuse_lora()
    merged.unload_lora()
    exact, start, aim = merged.state_dict(), base.state_dict(), output(policy)
    effect, length = (aim - output(base)).norm().item(), change(exact, start)

    def row(stored: str, *states: dict[str, Tensor]) -> tuple:
        kept = []
        for state in states:
            unet.load_state_dict(state)
            kept.append((1 - (output(unet) - aim).norm().item() / effect, 1 - change(state, exact) / length))
        return steps, stored, *(f"{value:.4f}" for value in np.mean(kept, 0))

    rows = [row(f"{name}, as exported", unet_of(export).state_dict()) for name, export in exports.items()]
    for dtype in (torch.bfloat16, torch.float16):
        rows.append(row(f"{str(dtype).removeprefix('torch.')} to nearest", rounded(exact, start, dtype, None)))
        states = [rounded(exact, start, dtype, seed) for seed in range(SEEDS)]
        rows.append(row(f"{str(dtype).removeprefix('torch.')} stochastically", *states))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[12, 40, 300])
    rows = []
    with TemporaryDirectory() as name:
        prepare(Path(name))
        for steps in parser.parse_args().steps:
            rows += measure(Path(name), steps)
            print(*rows[-6:], sep="\n", flush=True)
    write_csv(RESULTS, COLUMNS, rows)


if __name__ == "__main__":
    main()
