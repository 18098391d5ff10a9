"""The same plan for the way others train SDXL: `python -m benchmarks.plan_rivals`. Drawn, not measured; no GPU needed.

- official: full fine-tuning as Diffusion-DPO's authors do it, with AdamW: float32 policy under autocast, live fp16
  reference UNet, VAE and text encoders on the GPU. (For SDXL their script takes Adafactor, which has smaller states:
  8 bytes a parameter less.)
- LoRA script: diffusers' train_diffusion_dpo_sdxl.py: frozen fp16 UNet whose adapter is switched off for the reference,
  float32 adapter of rank 8 and its AdamW, VAE and text encoders on the GPU.
- ours: configs/sdxl_js*.json, the rungs, and configs/sdxl_lora_js.json at the same rank.

All with gradient checkpointing, a pair of 1024 x 1024 a micro-batch, and accumulation. Activations of each are traced
on fake tensors under its own autocast. Writes results/plan_rivals.csv.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.common.arguments import help_if_asked
from benchmarks.common.tables import write_csv
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.memory.account import GIB, Account, step_account
from fdpo_fast.memory.ladder import RUNGS, on_rung
from fdpo_fast.memory.trace import trace, vae_passes
from fdpo_fast.models import quiet_libraries
from fdpo_fast.models.architecture import Architecture, read_architecture
from fdpo_fast.models.vae import without_decoder

CONFIGS = Path(__file__).parent.parent / "configs"
CSV = Path(__file__).parent / "results/plan_rivals.csv"
HALF = 2
"""Bytes of fp16 and of bf16, which a CPU's autocast knows."""


class Autocast(Architecture):
    """A UNet whose forward is under autocast, as accelerate wraps it; its casts of weights live until it ends."""

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        unet = super().denoiser(dtype)
        unet.forward = torch.autocast("cpu", torch.bfloat16)(unet.forward)
        return unet


def elements(module: nn.Module) -> int:
    """Count the elements of all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def rivals_account(config: Config, architecture: Architecture) -> Account:
    """The account of a script that has VAE and text encoders resident and encodes its pair at every step."""
    traced = trace(config, Autocast(**vars(architecture)))
    account = step_account(config, traced, 1, gpu=True)
    if config.reference.mode == "live":  # it is frozen, in fp16
        account.add("reference model", "gpu", HALF * traced.trained - traced.trained_bytes)
    text = architecture.text_parameters
    vae = architecture.vae(torch.float16)
    account.add("text encoders", "gpu", HALF * text)
    account.add("VAE", "gpu", HALF * elements(vae))
    encoding = vae_passes(config, architecture).encoding - 4 * elements(without_decoder(vae))  # in float32
    before = sum(entry.size for entry in account.entries if entry.part == "activations" and "forward" in entry.phases)
    account.add("encoding", "gpu", max(HALF / 4 * encoding - before, 0), "forward")
    return account


def plans() -> Iterator[tuple[str, Account]]:
    full, adapter, a_pair = CONFIGS / "sdxl_js.json", CONFIGS / "sdxl_lora_js.json", "data.encode_batch=2"
    ours = load(full)
    architecture = read_architecture(ours.model)
    live = ["reference.mode=live", "reference.visits=null"]
    official = load(full, ["model.dtype=fp32", "optimizer.type=adamw", a_pair, *live])
    yield "official recipe, AdamW", rivals_account(official, architecture)
    of_rank_8 = ["model.lora.rank=8", "model.lora.alpha=8.0", a_pair]
    theirs = load(adapter, [*of_rank_8, "optimizer.type=adamw", "deepspeed.bf16.enabled=false"])
    yield "diffusers' LoRA script, rank 8", rivals_account(theirs, read_architecture(theirs.model))
    lora = load(adapter, of_rank_8)
    drawn_lora = read_architecture(lora.model)
    yield "fdpo_fast, LoRA, rank 8", step_account(lora, trace(lora, drawn_lora), 1, gpu=True)
    traced = trace(ours, architecture)
    for name in RUNGS:
        yield f"fdpo_fast, rung {name}", step_account(on_rung(ours, name, 1), traced, 1, gpu=True)


def main() -> None:
    quiet_libraries()
    accounts = dict(plans())
    parts = list(dict.fromkeys(entry.part for account in accounts.values() for entry in account.entries))
    columns, rows = ("plan", "peak_in", "gpu_tensors_gib", "host_gib", *parts), []
    for name, account in accounts.items():
        phase = account.peak("gpu")
        by_part = account.parts(phase, "gpu")
        sizes = [account.total(account.peak(device), device) for device in ("gpu", "host")]
        sizes += [by_part.get(part, 0) for part in parts]
        rows.append((name, phase, *(f"{size / GIB:.2f}" for size in sizes)))
    write_csv(CSV, columns, rows)
    for name, *row in rows:
        cells = zip(columns[1:], row, strict=True)
        print(f"{name:32}" + "; ".join(f"{key} {value}" for key, value in cells if value != "0.00"))


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
