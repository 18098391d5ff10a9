"""LPIPS: the distance of two images in the features of AlexNet (Zhang et al. 2018, equation 1; version 0.1)."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from fdpo_fast.config.errors import UserError
from fdpo_fast.evaluate import weights
from fdpo_fast.evaluate.scorers import pixels

MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""LPIPS' own normalisation, of pixels in [-1, 1]."""
LAYERS = (
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
)
"""The layers of torchvision's AlexNet: number of the convolution, channels in and out, kernel, stride, padding."""
POOLED = (3, 6)
"""The numbers of the convolutions that a max-pooling of 3 with stride 2 precedes."""


class Distance:
    """The distance by two files of weights in a folder, pth or safetensors.

    They are `alexnet` (torchvision's) and `lpips` (the authors' alex.pth). Raises UserError where one is missing.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        folder = Path(model).expanduser()
        files = {
            name: [*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}.pth")] for name in ("alexnet", "lpips")
        }
        if not model or not all(files.values()):
            raise UserError(
                "'lpips' takes a folder as its model, with torchvision's AlexNet as alexnet.pth and the authors' "
                "weights/v0.1/alex.pth as lpips.pth"
            )
        state, linear = (weights.read(files[name][0]) for name in ("alexnet", "lpips"))
        self.device, self.layers, self.weights = device, [], []
        for index, (number, inputs, outputs, kernel, stride, padding) in enumerate(LAYERS):
            layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
            layer.load_state_dict({key: state[f"features.{number}.{key}"] for key in ("weight", "bias")})
            self.layers.append((number in POOLED, layer.to(device).eval()))
            self.weights.append(linear[f"lin{index}.model.1.weight"].to(device).float())

    @torch.inference_mode()
    def features(self, images: list[Image.Image]) -> list[Tensor]:
        """Return every layer's features of the images, each position's channels of unit length: [n, c, h, w]."""
        size = images[0].size
        hidden = pixels(images).float().unflatten(1, (size[1], size[0], 3)).permute(0, 3, 1, 2).to(self.device)
        mean, std = (
            torch.tensor(values, device=self.device, dtype=torch.float32)[:, None, None] for values in (MEAN, STD)
        )
        hidden, layers = (hidden * 2 - 1 - mean) / std, []
        for pooled, layer in self.layers:
            if pooled:
                hidden = nn.functional.max_pool2d(hidden, 3, 2)
            hidden = layer(hidden).relu()
            layers.append(normalize(hidden, dim=1, eps=1e-10))
        return layers

    def between(self, layers: list[Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return the distances [m] float64 of the pairs of images whose numbers are first [m] and second [m]."""
        parts = [
            nn.functional.conv2d((layer[first] - layer[second]) ** 2, weight).mean(dim=(1, 2, 3))
            for layer, weight in zip(layers, self.weights, strict=True)
        ]
        return torch.stack(parts).sum(dim=0).double()
