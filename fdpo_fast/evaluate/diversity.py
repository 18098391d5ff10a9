"""How different a caption's images are. Each measure takes the images of one caption and gives a number.

There is no standard: K images a caption and their seeds belong to every figure. All grow with diversity.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fdpo_fast.evaluate.lpips import Distance
from fdpo_fast.evaluate.plugins import named
from fdpo_fast.evaluate.scorers import Clip, Images, pixels

Encoder = Callable[[Images], Tensor]


def rmse(images: Images) -> float:
    """Return the mean over pairs of images of the root mean squared difference of their pixels, in [0, 1]."""
    flat = pixels(images)
    return (torch.pdist(flat).mean() / flat.shape[1] ** 0.5).item()


def vendi(features: Tensor) -> float:
    """Return the effective number of different images, 1 to n (Friedman and Dieng 2022, equation 1).

    It is exp of the entropy of the eigenvalues of K / n, with K the cosine similarities of features [n, d].
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp(min=0)
    return torch.special.entr(eigenvalues).sum().exp().item()


def entropy(features: Tensor) -> float:
    """Estimate the entropy of features [n, d] in nats a dimension, by each image's distance to its nearest neighbour.

    Kozachenko and Leonenko 1987: mean log r_i + (log V_d + log(n - 1) - psi(1)) / d, V_d the volume of the unit ball.
    Two equal images make it minus infinity.
    """
    points = features.double()
    n, d = points.shape
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    log_ball = d / 2 * np.log(np.pi) - torch.lgamma(torch.tensor(d / 2 + 1, dtype=torch.float64, device="cpu")).item()
    constant = log_ball + np.log(n - 1) + np.euler_gamma
    return (distances.min(dim=1).values.log().mean() + constant / d).item()


class OfFeatures:
    """A measure of the features that an encoder makes of images."""

    def __init__(self, measure: Callable[[Tensor], float], encoder: Encoder) -> None:
        self.measure, self.encoder = measure, encoder

    def __call__(self, images: Images) -> float:
        """Measure the images of a caption."""
        return self.measure(torch.as_tensor(self.encoder(images)))


class Lpips:
    """The mean LPIPS (Zhang et al. 2018, version 0.1, AlexNet) over the pairs of a caption's images."""

    def __init__(self, model: str, device: torch.device) -> None:
        self.distance = Distance(model, device)

    def __call__(self, images: Images) -> float:
        """Return the mean distance over all pairs of the images."""
        layers = self.distance.features(images)
        pairs = torch.tensor(list(combinations(range(len(images)), 2)), dtype=torch.int64, device="cpu")
        return self.distance.between(layers, *pairs.T).mean().item()


def _encoder(model: str, device: torch.device) -> Encoder:
    """Load the user's `module:function`, or the image side of a CLIP by its folder or hub name."""
    if ":" in model:
        return named(model, {}, "evaluate.diversity's model")
    return Clip(model, device).image_features


class Spread(NamedTuple):
    """A measure by what makes it of `model` and a device, and the model that it takes where none is named."""

    make: Callable[[str, torch.device], Callable[[Images], float]]
    published: str

    def __call__(self, model: str, device: torch.device) -> Callable[[Images], float]:
        """Make the measure of a model on a device."""
        return self.make(model, device)


MEASURES = {
    "rmse": Spread(lambda model, device: rmse, "pixels"),
    "vendi": Spread(lambda model, device: OfFeatures(vendi, _encoder(model, device)), Clip.published),
    "entropy": Spread(lambda model, device: OfFeatures(entropy, _encoder(model, device)), Clip.published),
    "lpips": Spread(Lpips, ""),  # there is no single file of both its parts
}
