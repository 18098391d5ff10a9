"""Stored images to the tensors a VAE takes: one geometry for both sides of a pair."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fdpo_fast import noise
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.decode import Unreadable, decode, size_of
from fdpo_fast.data.pairs import Pair, Picture, ReadyLatents, Rejected
from fdpo_fast.data.reading import UnreachableError, UnusableError
from fdpo_fast.ops.constants import Stream

Size = tuple[int, int]
"""Height and width of an image in pixels."""

WIDEST = 2.0  # aspect ratio of a bucket


class Frame(NamedTuple):
    """How an image is cut, and what that makes of it."""

    size: tuple[int, int, int, int, int, int]
    """Original height and width, crop top and left in the resized image, height and width of the result."""
    box: tuple[float, float, float, float]
    """What is kept of the original: left, top, right and bottom, in its pixels."""
    flip: bool
    """Whether what is kept is mirrored."""


class Placed(NamedTuple):
    """One side of a pair as it is going to be encoded, from what is stored and its header alone."""

    side: bytes | ReadyLatents
    """The stored bytes, not decoded yet, or latents that came ready."""
    frame: Frame
    key: bytes
    """A digest that is equal for equal images under equal geometry."""
    name: str
    """What sentences call the image."""

    def image(self, megapixels: float) -> Image.Image:
        """Decode the image as a whole. Raises UnusableError where it does not decode."""
        if isinstance(self.side, ReadyLatents):
            raise TypeError("latents have no pixels")
        try:
            return decode(self.side, megapixels)
        except Unreadable as error:
            raise UnusableError(f"an image does not decode: {self.name}: {error}") from None

    def pixels(self, megapixels: float) -> Tensor:
        """Decode the image and cut it: [3, h, w] uint8. Raises UnusableError where it does not decode."""
        return cut(self.image(megapixels), self.frame)


@dataclass(frozen=True)
class Geometry:
    """How the images of a pair are resized, cropped and mirrored: both alike, as a function of (seed, pair id)."""

    data: Data
    seed: int
    vae_factor: int
    """How many pixels a latent spans along a side."""
    denoiser_factor: int
    """How many latents an element of the denoiser's coarsest level spans along a side."""
    channels: int = 0
    """Those of the latents that the denoiser takes; 0 for any."""

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

    def place(self, pair: Pair) -> tuple[Placed, Placed] | Rejected:
        """Read both sides of a pair and find how they are cut, without decoding them, or say why that cannot be done.

        Raises UnreachableError, with the pair's place, where an image cannot be read for now.
        """
        sides = pair.preferred, pair.dispreferred
        ready = [side for side in sides if isinstance(side, ReadyLatents)]
        if len(ready) == 2:
            shapes = [side.values.shape for side in ready]
            if shapes[0] != shapes[1]:
                differ = f"the latents of its sides differ in shape: {shapes[0]}, {shapes[1]}"
                return Rejected(pair.place, differ, pair.row)
            if unfit := self._unfit(shapes[0]):
                return Rejected(pair.place, unfit, pair.row)
            first, second = (self._ready(side) for side in ready)
            return first, second
        pictures = [side for side in sides if isinstance(side, Picture)]
        contents, sizes = [], []
        for picture in pictures:
            try:
                contents.append(picture.read())
                sizes.append(size_of(contents[-1], self.data.max_megapixels))
            except UnreachableError as error:
                raise UnreachableError(f"{pair.place}: {error}") from None
            except (UnusableError, Unreadable) as error:
                reason = f"an image does not decode: {picture.name}: {error}"
                return Rejected(pair.place, reason, pair.row, tuple(pictures))
        frames = self.frames(pair.id, sizes)
        first, second = (
            Placed(content, frame, _key(content, (*frame.size, frame.flip)), picture.name)
            for content, frame, picture in zip(contents, frames, pictures, strict=True)
        )
        return first, second

    def frames(self, pair: int, sizes: Sequence[Size]) -> list[Frame]:
        """Find how the images of a pair, by its id, are cut, from their sizes."""
        target = target_size(self.data, sizes)
        x, y, mirrored = 0.5, 0.5, 1.0
        if self.data.crop == "random" or self.data.flip:
            uniform = noise.words(noise.draws(self.seed, pair, 0), Stream.GEOMETRY, 1)[0] * 2.0**-32
            mirrored = float(uniform[2])
            if self.data.crop == "random":
                x, y = uniform[:2].tolist()
        return [frame(size, target, (x, y), mirrored < self.data.flip) for size in sizes]

    def _unfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why the denoiser does not take ready latents [c, h, w]; None where it does."""
        channels, *sides = shape
        if self.channels and channels != self.channels:
            return f"latents have {channels} channels, model.base takes {self.channels}: they are {list(shape)}"
        if any(side % self.denoiser_factor for side in sides):
            by = self.denoiser_factor
            return f"a side of latents is no multiple of {by}, by which model.base divides it: they are {list(shape)}"
        return None

    def _ready(self, side: ReadyLatents) -> Placed:
        height, width = (self.vae_factor * n for n in side.values.shape[1:])
        size = (*(side.original_size or (height, width)), *side.crop, height, width)
        return Placed(side, Frame(size, (0, 0, 0, 0), False), _key(side.values.tobytes(), size), "latents")


def sizes_of(data: Data) -> list[Size]:
    """List the sizes that images are brought to: one square, or the buckets."""
    side, step = data.resolution, data.bucket_step
    if not data.buckets:
        return [(side, side)]
    sizes = []
    for height in range(step, int(side * math.sqrt(WIDEST)) + step, step):
        width = side * side // height // step * step
        if width and max(height / width, width / height) <= WIDEST:
            sizes.append((height, width))
    return sizes or [(side, side)]


def target_size(data: Data, sizes: Sequence[Size]) -> Size:
    """Choose the size that the images of a pair are brought to: it keeps most of the one that loses more.

    The order of the images does not matter, so neither does which of them is preferred.
    """
    aspects = [math.log(height / width) for height, width in sizes]

    def lost(size: Size) -> tuple[float, float, Size]:
        apart = [abs(math.log(size[0] / size[1]) - aspect) for aspect in aspects]
        return max(apart), sum(apart), size

    return min(sizes_of(data), key=lost)


def frame(size: Size, target: Size, centre: tuple[float, float], flip: bool) -> Frame:
    """Cover `target` with an image of `size`, crop what stands over at `centre` (shares of it), mirror it if `flip`."""
    (full_height, full_width), (height, width) = size, target
    scale = max(height / full_height, width / full_width)
    resized = max(round(full_height * scale), height), max(round(full_width * scale), width)
    left, top = round(centre[0] * (resized[1] - width)), round(centre[1] * (resized[0] - height))
    across, down = full_width / resized[1], full_height / resized[0]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    if flip:
        left = resized[1] - width - left
    return Frame((full_height, full_width, top, left, height, width), box, flip)


def cut(image: Image.Image, frame: Frame) -> Tensor:
    """Resize and crop an image as a frame says, [3, h, w] uint8."""
    height, width = frame.size[4:]
    out = image.resize((width, height), Image.Resampling.BICUBIC, box=frame.box)
    if frame.flip:
        out = ImageOps.mirror(out)
    return torch.from_numpy(np.array(out)).permute(2, 0, 1)


def _key(content: bytes, geometry: tuple) -> bytes:
    return hashlib.blake2b(content + repr(geometry).encode(), digest_size=16).digest()


def to_vae(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels [n, 3, h, w] into the float32 in [-1, 1] that a VAE takes, the same on every device."""
    half = torch.full((), 127.5, dtype=torch.float32, device=pixels.device)
    return pixels.float() / half - 1  # by a number, a GPU would multiply by its inverse, which rounds otherwise
