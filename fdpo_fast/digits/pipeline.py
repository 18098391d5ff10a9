"""The training of an embedded base: its VAE, then text encoders and denoiser, on scans of digits in minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fdpo_fast.config.digits import DigitsRecipe
from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.digits.maker import TOKENS, maker, model_of
from fdpo_fast.files import replacing
from fdpo_fast.models import family_class
from fdpo_fast.models.process import tables
from fdpo_fast.models.tokenizer import clip_tokenizer
from fdpo_fast.progress import progress

CHECKPOINT = 100  # steps


def build_pipeline(
    base: str, recipe: DigitsRecipe, images: Tensor, labels: Tensor, captions: tuple[str, ...], folder: Path
) -> None:
    """Train the VAE, then text encoders and denoiser, and save `folder/pipeline`, in diffusers' format.

    base: a name of `EMBEDDED`. images [n, 1, 32, 32] in [0, 1]; labels [n] index `captions`.
    """
    if (folder / "pipeline").exists():
        return
    made, family = maker(base), family_class(model_of(base))
    torch.manual_seed(recipe.seed)  # the initial weights
    modules = {name: make() for name, make in made.parts().items()}
    vae, denoiser = modules["vae"], modules[family.denoiser_name]
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
    pipeline = made.pipeline(modules, clip_tokenizer(folder / "tokenizer", captions, TOKENS))
    process = tables(pipeline.scheduler)

    def denoiser_loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator, dtype=torch.int64, device="cpu")
        noise = torch.randn(latents[rows].shape, generator=generator, dtype=torch.float32, device="cpu")
        steps = torch.randint(1000, (recipe.batch,), generator=generator, dtype=torch.int64, device="cpu")
        # for classifier-free guidance
        dropped = torch.rand(recipe.batch, generator=generator, dtype=torch.float32, device="cpu") < 0.1
        text = made.encode(pipeline, [*captions, ""])
        condition = {key: value[labels[rows].masked_fill(dropped, len(captions))] for key, value in text.items()}
        signal, sigma, on_noise, on_data = (
            table[steps, None, None, None] for table in (process.signal, process.sigma, *process.on)
        )
        noisy, target = signal * latents[rows] + sigma * noise, on_noise * noise + on_data * latents[rows]
        return mse_loss(family.predict(denoiser, noisy, process.fed[steps], condition), target)

    encoders = [module for name, module in modules.items() if name.startswith("text_encoder")]
    trained, budget = nn.ModuleList([denoiser, *encoders]), getattr(recipe, EMBEDDED[base].steps)
    _fit(family.denoiser_name, folder, trained, denoiser_loss, budget, 2e-3, recipe.seed + 1)

    denoiser.eval()
    with replacing(folder / "pipeline") as partial:
        pipeline.save_pretrained(partial)


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
    rise = 0.1 if steps != 10 else 0.2  # torch divides by a rise of one step less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=rise)
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
