"""Stored images to the tensors a VAE takes: decoding, and one geometry for both sides of a pair."""

from __future__ import annotations

import hashlib
import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fdpo_fast import noise
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import Pair, ReadyLatents, Rejected
from fdpo_fast.ops.constants import Stream

Size = tuple[int, int]
"""Height and width of an image in pixels."""

UNREADABLE = (
    OSError, EOFError, TypeError, ValueError, SyntaxError, RuntimeError, LookupError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""The exceptions that PIL's decoders raise on bytes that are no whole image."""

WIDEST = 2.0  # aspect ratio of a bucket


def decode(stored: bytes | Path) -> Image.Image:
    """Decode an image upright and in RGB: EXIF turns applied, transparency over white, deep grayscale scaled to 8 bits.

    Raises what PIL raises on bytes that are not a whole image.
    """
    image: Image.Image = Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        span = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1.0)
        image = Image.fromarray((values / span * 255).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


class Placed(NamedTuple):
    """One side of a pair, decoded and cut: what the VAE and the micro-conditioning need."""

    pixels: Tensor | None
    """The pixels [3, h, w] uint8; None where latents came ready."""
    latents: Tensor | None
    """The latents [c, h/f, w/f] float32 where they came ready, else None."""
    size: tuple[int, int, int, int, int, int]
    """Original height and width, crop top and left in the resized image, height and width of the result."""
    key: bytes
    """A digest that is equal for equal images under equal geometry."""


@dataclass(frozen=True)
class Geometry:
    """How the images of a pair are resized, cropped and mirrored: both alike, as a function of (seed, pair id)."""

    data: Data
    seed: int
    vae_factor: int
    """How many pixels a latent spans along a side."""
    denoiser_factor: int
    """How many latents an element of the denoiser's coarsest level spans along a side."""

    def __post_init__(self) -> None:
        name = "bucket_step" if self.data.buckets else "resolution"
        step, factor = getattr(self.data, name), self.vae_factor * self.denoiser_factor
        if step % factor:
            raise UserError(
                f"data.{name} {step} is not a multiple of {factor}, by which VAE and denoiser divide a side: take "
                f"{-(-step // factor) * factor}"
            )

    def identity(self) -> dict:
        """Return what latents depend on, for the manifest of their cache."""
        keys = ["resolution", "crop", "flip", *(["buckets", "bucket_step"] if self.data.buckets else [])]
        random = self.data.crop == "random" or self.data.flip > 0
        return self.data.model_dump(include=set(keys)) | ({"seed": self.seed} if random else {})

    def sizes(self) -> list[Size]:
        """List the sizes that images are brought to: one square, or the buckets."""
        side, step = self.data.resolution, self.data.bucket_step
        if not self.data.buckets:
            return [(side, side)]
        sizes = []
        for height in range(step, int(side * math.sqrt(WIDEST)) + step, step):
            width = side * side // height // step * step
            if width and max(height / width, width / height) <= WIDEST:
                sizes.append((height, width))
        return sizes or [(side, side)]

    def place(self, pair: Pair) -> tuple[Placed, Placed] | Rejected:
        """Decode, resize and cut both sides of a pair, or say why that cannot be done."""
        sides = pair.preferred, pair.dispreferred
        if ready := [side for side in sides if isinstance(side, ReadyLatents)]:
            preferred, dispreferred = ready
            if preferred.values.shape != dispreferred.values.shape:
                return Rejected(pair.place, "the latents of its sides differ in shape")
            return self._ready(preferred), self._ready(dispreferred)
        stored = [side for side in sides if not isinstance(side, ReadyLatents)]
        try:
            images = [decode(side) for side in stored]
        except FileNotFoundError:
            return Rejected(pair.place, "an image is missing")
        except UNREADABLE:
            return Rejected(pair.place, "an image does not decode")
        aspect = images[0].height / images[0].width
        target = min(self.sizes(), key=lambda size: (abs(math.log(size[0] / size[1] / aspect)), size))
        x, y, mirrored = 0.5, 0.5, 0.0
        if self.data.crop == "random" or self.data.flip:
            uniform = noise.words(noise.draws(self.seed, pair.id, 0), Stream.GEOMETRY, 1)[0] * 2.0**-32
            mirrored = float(uniform[2])
            if self.data.crop == "random":
                x, y = uniform[:2].tolist()
        flip = mirrored < self.data.flip if self.data.flip else False
        first, second = (cut(image, target, (x, y), flip, side) for image, side in zip(images, stored, strict=True))
        return first, second

    def _ready(self, side: ReadyLatents) -> Placed:
        values = torch.from_numpy(side.values)
        height, width = (self.vae_factor * n for n in values.shape[1:])
        size = (*(side.original_size or (height, width)), *side.crop, height, width)
        return Placed(None, values, size, _key(side.values.tobytes(), size))


def cut(
    image: Image.Image, target: Size, centre: tuple[float, float], flip: bool, stored: bytes | Path = b""
) -> Placed:
    """Cover `target` with the resized image, crop what stands over at `centre` (shares of it), mirror it if `flip`."""
    height, width = target
    scale = max(height / image.height, width / image.width)
    resized = max(round(image.height * scale), height), max(round(image.width * scale), width)
    left, top = round(centre[0] * (resized[1] - width)), round(centre[1] * (resized[0] - height))
    across, down = image.width / resized[1], image.height / resized[0]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    out = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if flip:
        out, left = ImageOps.mirror(out), resized[1] - width - left
    size = (image.height, image.width, top, left, height, width)
    pixels = torch.from_numpy(np.array(out)).permute(2, 0, 1)
    return Placed(pixels, None, size, _key(stored.read_bytes() if isinstance(stored, Path) else stored, (*size, flip)))


def _key(content: bytes, geometry: tuple) -> bytes:
    return hashlib.blake2b(content + repr(geometry).encode(), digest_size=16).digest()


def to_vae(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels [n, 3, h, w] into the float32 in [-1, 1] that a VAE takes, the same on every device."""
    half = torch.full((), 127.5, dtype=torch.float32, device=pixels.device)
    return pixels.float() / half - 1  # by a number, a GPU would multiply by its inverse, which rounds otherwise
