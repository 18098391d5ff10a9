"""Sample grids: the same captions and start latents through the base and the policy, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor

from fdpo_fast.config.schema import Log
from fdpo_fast.files import replacing
from fdpo_fast.models.placement import collect

if TYPE_CHECKING:
    from fdpo_fast.models.denoiser import Denoiser
    from fdpo_fast.models.family import Family

_MARGIN = 6
_TEXT = 16
_LINE, _LETTERS = 14, 40
"""The height of a line of a caption in pixels, and the letters it has room for."""


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
                self.family.channels(denoiser.config),
                size,
                size,
                generator=generator,
                dtype=torch.float32,
                device="cpu",
            )
            drawn.append(
                pipeline(
                    [prompt] * settings.images_per_prompt,
                    latents=self.family.packed(latents).to(self.device, denoiser.dtype),
                    height=self.resolution,
                    width=self.resolution,
                    num_inference_steps=settings.sampling_steps,
                    guidance_scale=settings.guidance,
                    output_type="pt",
                    **self.family.drawing,
                ).images
            )
        del pipeline
        collect()
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


@dataclass(frozen=True)
class Layout:
    """Where everything lies on a sheet: captions at the left, a row each, and a block of images a column."""

    text: int
    widths: tuple[int, ...]
    height: int
    captions: tuple[tuple[str, ...], ...]
    """The lines of each caption, as many as its row has room for."""

    @classmethod
    def of(cls, captions: Sequence[str], widths: Sequence[int], height: int) -> Layout:
        """Lay out blocks of these widths, and rows of this height; what of a caption has no room is left out."""
        room = max(1, height // _LINE)
        lines = [tuple(wrap(short, _LETTERS, max_lines=room, placeholder=" …")) for short in map(_bounded, captions)]
        text = max((8 * len(line) for caption in lines for line in caption), default=0) + _MARGIN
        return cls(text, tuple(widths), height, tuple(lines))

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height of the sheet."""
        width = self.text + sum(self.widths) + _MARGIN * (len(self.widths) + 1)
        return width, self.top(len(self.captions))

    def left(self, column: int) -> int:
        """Return where a column begins."""
        return self.text + sum(self.widths[:column]) + _MARGIN * column

    def top(self, row: int) -> int:
        """Return where a row begins."""
        return _TEXT + _MARGIN + row * (self.height + _MARGIN)

    def images(self, sheet: Image.Image, column: int, row: int, count: int) -> list[Image.Image]:
        """Cut the images of a block out of a sheet again."""
        side, left, top = self.widths[column] // count, self.left(column), self.top(row)
        lefts = (left + side * number for number in range(count))
        return [sheet.crop((at, top, at + side, top + self.height)) for at in lefts]


def _bounded(caption: str) -> str:
    """Cut a caption to more than any sheet has room for, before it is wrapped."""
    return caption[: _LETTERS * 200]


def side_by_side(captions: list[str], columns: dict[str, Tensor], scale: int = 1) -> Image.Image:
    """Arrange images: one row a caption, one block [captions, k, 3, h, w] a column, each under its name."""
    widths = [block.shape[1] * block.shape[4] * scale for block in columns.values()]
    layout = Layout.of(captions, widths, next(iter(columns.values())).shape[3] * scale)
    sheet = Image.new("RGB", layout.size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, (name, block) in enumerate(columns.items()):
        left, size = layout.left(column), (widths[column], layout.height)
        pen.text((left, _MARGIN // 2), name[: max(1, widths[column] // 6)], fill="black")
        for row, images in enumerate(block):
            strip = torch.cat(list(images), dim=2)
            pixels = (strip.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), (left, layout.top(row)))
    for row, lines in enumerate(layout.captions):
        middle = layout.top(row) + layout.height // 2
        pen.multiline_text((_MARGIN, middle), "\n".join(lines), fill="black", anchor="lm", spacing=2)
    return sheet
