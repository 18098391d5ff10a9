"""PIL images to the tensors a VAE takes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def square(image: Image.Image, size: int) -> Tensor:
    """Resize the short side to `size` and crop the middle: [3, size, size] in [-1, 1].

    Both images of a pair go through the same deterministic crop.
    """
    fitted = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1
