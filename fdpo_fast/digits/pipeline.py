"""The base pipeline of the embedded default: a StableDiffusionPipeline trained on scans of digits in minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fdpo_fast.config.schema import DigitsRecipe
from fdpo_fast.files import replacing
from fdpo_fast.models.tokenizer import BEGIN, END, clip_tokenizer
from fdpo_fast.progress import progress

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

CHECKPOINT = 100  # steps


def build_pipeline(
    recipe: DigitsRecipe, images: Tensor, labels: Tensor, captions: tuple[str, ...], folder: Path
) -> None:
    """Train the VAE, then text encoder and UNet, and save `folder/pipeline`, a StableDiffusionPipeline.

    images [n, 1, 32, 32] in [0, 1]; labels [n] index `captions`.
    """
    if (folder / "pipeline").exists():
        return
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(recipe.seed)  # the initial weights
    vae, text_encoder, unet = make_vae(images.shape[-1]), make_text_encoder(), make_unet(images.shape[-1])
    tokenizer = clip_tokenizer(folder / "tokenizer", captions, 16)
    scheduler = make_scheduler()
    images = images.expand(-1, 3, -1, -1) * 2 - 1

    def vae_loss(generator: torch.Generator) -> Tensor:
        batch = images[
            torch.randint(len(images), (recipe.batch,), generator=generator, dtype=torch.int64, device="cpu")
        ]
        posterior = vae.encode(batch).latent_dist
        return mse_loss(vae.decode(posterior.sample(generator)).sample, batch) + 1e-4 * posterior.kl().mean() / 256

    _fit("vae", folder, nn.ModuleList([vae]), vae_loss, recipe.vae_steps, 2e-3, recipe.seed)

    vae.requires_grad_(False).eval()
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(256)])
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    latents *= vae.config.scaling_factor
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids

    def unet_loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator, dtype=torch.int64, device="cpu")
        noise = torch.randn(latents[rows].shape, generator=generator, dtype=torch.float32, device="cpu")
        steps = torch.randint(1000, (recipe.batch,), generator=generator, dtype=torch.int64, device="cpu")
        # for classifier-free guidance
        dropped = torch.rand(recipe.batch, generator=generator, dtype=torch.float32, device="cpu") < 0.1
        context = text_encoder(tokens).last_hidden_state[labels[rows].masked_fill(dropped, len(captions))]
        noisy = scheduler.add_noise(latents[rows], noise, steps)
        return mse_loss(unet(noisy, steps, context).sample, noise)

    _fit("unet", folder, nn.ModuleList([unet, text_encoder]), unet_loss, recipe.unet_steps, 2e-3, recipe.seed + 1)

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with replacing(folder / "pipeline") as partial:
        pipeline.save_pretrained(partial)


def make_scheduler() -> DDIMScheduler:
    """Make the scheduler of Stable Diffusion 1.5."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_vae(size: int) -> AutoencoderKL:
    """Make a VAE of 4 latent channels with random weights, for images of `size` pixels a side."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=size,
    )


def make_unet(size: int) -> UNet2DConditionModel:
    """Make a UNet with random weights, for images of `size` pixels a side."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size // 4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def make_text_encoder() -> CLIPTextModel:
    """Make a CLIP text encoder of two layers with random weights, for 16 tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=1000,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=BEGIN,
            eos_token_id=END,
            pad_token_id=END,
        )
    )


def _fit(
    name: str,
    folder: Path,
    model: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    steps: int,
    lr: float,
    seed: int,
) -> None:
    """Train by AdamW with a one-cycle rate, going on from `folder/name.pt`.

    Step i draws from a generator that is seeded by (seed, i).
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    saved, first = folder / f"{name}.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    model.train()
    bar = progress(range(first, steps), initial=first, total=steps, desc=f"base pipeline: {name}")
    for step in bar:
        loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % CHECKPOINT == 0 or step + 1 == steps:
            bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)
            with replacing(saved) as partial:
                state = {
                    "step": step + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                }
                torch.save(state, partial)
