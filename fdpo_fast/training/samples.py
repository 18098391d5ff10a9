"""Sample grids: the same captions and start latents through the base and the policy, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor

from fdpo_fast.config.schema import Log
from fdpo_fast.files import replacing

if TYPE_CHECKING:
    from fdpo_fast.models.denoiser import Denoiser
    from fdpo_fast.models.family import Family

_MARGIN = 6
_TEXT = 16


class SampleGrids:
    """Draws `log.prompts` with the current policy into `<output_dir>/samples/step-N.png`.

    The first grid is the base's (the policy has not moved yet); its images stay beside the grids as the left half.
    """

    def __init__(
        self, settings: Log, family: Family, folder: Path, resolution: int, seed: int, device: torch.device
    ) -> None:
        self.settings, self.family, self.folder, self.device = settings, family, folder, device
        self.resolution, self.seed = resolution, seed

    @torch.no_grad()
    def images(self, denoiser: Denoiser) -> Tensor:
        """Draw [prompts, images_per_prompt, 3, h, w] in [0, 1]; collective where the weights are sharded."""
        settings = self.settings
        pipeline = self.family.sampler(denoiser, self.device)
        generator = torch.Generator().manual_seed(self.seed)
        size = self.resolution // pipeline.vae_scale_factor
        drawn = []
        for prompt in settings.prompts:
            latents = torch.randn(
                settings.images_per_prompt,
                denoiser.config.in_channels,
                size,
                size,
                generator=generator,
                dtype=torch.float32,
                device="cpu",
            )
            drawn.append(
                pipeline(
                    [prompt] * settings.images_per_prompt,
                    latents=latents.to(self.device, denoiser.dtype),
                    num_inference_steps=settings.sampling_steps,
                    guidance_scale=settings.guidance,
                    output_type="pt",
                ).images
            )
        return torch.stack(drawn).float().cpu()

    def write(self, denoiser: Denoiser, step: int, rank: int) -> None:
        """Draw now; rank 0 writes the picture."""
        denoiser.eval()
        images = self.images(denoiser)
        denoiser.train()
        if rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        base = self.folder / "base.safetensors"
        if not base.exists():
            with replacing(base) as partial:
                save_file({"images": images.contiguous()}, partial)
        columns = {"base": load_file(base)["images"], f"step {step}": images}
        with replacing(self.folder / f"step-{step:06d}.png") as partial:
            side_by_side(self.settings.prompts, columns).save(partial, format="PNG")


def side_by_side(captions: list[str], columns: dict[str, Tensor], scale: int = 1) -> Image.Image:
    """Arrange images: one row a caption, one block [captions, k, 3, h, w] a column, each under its name."""
    widths = [block.shape[1] * block.shape[4] * scale for block in columns.values()]
    height = next(iter(columns.values())).shape[3] * scale
    text_width = max(8 * len(caption) for caption in captions) + _MARGIN
    width = text_width + sum(widths) + _MARGIN * (len(widths) + 1)
    sheet = Image.new("RGB", (width, _TEXT + _MARGIN + (height + _MARGIN) * len(captions)), "white")
    pen = ImageDraw.Draw(sheet)
    left = text_width
    for (name, block), block_width in zip(columns.items(), widths, strict=True):
        pen.text((left, _MARGIN // 2), name, fill="black")
        for row, images in enumerate(block):
            strip = torch.cat(list(images), dim=2)
            pixels = (strip.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels)
            picture = picture.resize((block_width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, _TEXT + _MARGIN + row * (height + _MARGIN)))
        left += block_width + _MARGIN
    for row, caption in enumerate(captions):
        pen.text((_MARGIN, _TEXT + _MARGIN + row * (height + _MARGIN) + height // 2 - 6), caption, fill="black")
    return sheet
