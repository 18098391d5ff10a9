"""What figures, measures and divergences are called on a page, and what they mean."""

from __future__ import annotations

import math
from typing import NamedTuple


class Word(NamedTuple):
    """A plain name with an explanation, and the value that the figure starts from or is held against."""

    name: str
    about: str
    level: float | None = None


FIGURES = {
    "loss": Word("Loss", "lower is better; a sigmoid's starts at log 2", math.log(2)),
    "accuracy": Word("Implicit accuracy", "share of pairs whose preferred image gains more; higher is better", 0.5),
    "margin": Word("Margin", "beta times how much more it has gained; higher is better", 0.0),
    "delta_w": Word("Error on preferred images", "minus the reference's; lower is better", 0.0),
    "delta_l": Word("Error on dispreferred images", "minus the reference's; rises as they are unlearnt", 0.0),
    "error_w": Word("Denoising error, preferred", "mean squared error of the policy; lower is better"),
    "error_l": Word("Denoising error, dispreferred", "mean squared error of the policy"),
    "grad_norm": Word("Gradient norm", "before clipping, of all trained weights"),
    "optimizer/lost": Word("Lost updates", "share of 16-bit weights whose update was rounded to nothing, by a sample"),
    "optimizer/noise": Word("Noise of rounding", "its norm in a step over that of the update, by a sample"),
    "movement": Word("Movement of the weights", "distance from the reference's over their norm, by a sample", 0.0),
    "lr": Word("Learning rate", "of the optimizer, after warm-up and schedule"),
    "clipped": Word("Capped log-ratios", "of a pair's two, those where the divergence goes on as a tangent"),
    "gradient_weight": Word("Gradient weight", "how hard a pair pulls, and at the reference 1", 1.0),
    "saturated": Word("Saturated pairs", "share of pairs whose gradient weight is below 0.05", 0.0),
    "steep": Word("Steep samples", "share of them where the link is over ten times as steep as at the reference", 0.0),
    "loser_scale": Word("Scale on dispreferred images", "of their gradients, so that the preferred keep theirs", 1.0),
    "images_per_second": Word("Speed", "images per second, all ranks together; higher is better"),
    "pairs": Word("Pairs", "of a step, all ranks together"),
    "memory_gib": Word("Peak memory", "GiB, of the first rank"),
    "memory_reserved_gib": Word("Peak memory reserved", "GiB, by the allocator of the first rank"),
}
"""The figures of a run's records."""

DIVERGENCES = {
    "reverse_kl": "reverse KL",
    "forward_kl": "forward KL",
    "jensen_shannon": "Jensen-Shannon",
    "squared_hellinger": "squared Hellinger",
    "jeffreys": "Jeffreys",
}


def divergence(kind: str) -> str:
    """Return what a divergence of a comparison is called; one without a plain name keeps its own."""
    name, comma, others = kind.partition(",")
    return DIVERGENCES.get(name, name.replace("_", " ")) + comma + others.replace("_", " ")


MEASURES = {
    "clip": Word("CLIPScore", "how well an image fits its caption, 0 to 100"),
    "pickscore": Word("PickScore", "what Pick-a-Pic's voters would choose, by a CLIP"),
    "hpsv2.0": Word("HPS v2.0", "what people prefer, by a CLIP of HPDv2"),
    "hpsv2.1": Word("HPS v2.1", "what people prefer, by a CLIP of HPDv2"),
    "imagereward": Word("ImageReward", "what experts prefer, in standard deviations"),
    "aesthetic": Word("Aesthetic score", "LAION's, 1 to 10, whatever the caption"),
    "rmse": Word("Pixel distance", "between two images of a caption, 0 to 1"),
    "vendi": Word("Vendi score", "how many different images a caption gets, in effect"),
    "entropy": Word("Entropy", "of a caption's images, nats a dimension of their features"),
    "lpips": Word("LPIPS", "perceptual distance between two images of a caption"),
    "fdpo_fast.digits:unseen": Word("Right digit", "probability of it, by a classifier unseen in training"),
    "fdpo_fast.digits:preference": Word("Rule's score", "of the rule that the pairs were labelled by"),
}
"""The scorers and measures of diversity; of all, more is better."""


def measure(name: str) -> Word:
    """Return what a measure is called; a function `module:function` by its own name."""
    module, _, function = name.rpartition(":")
    return MEASURES.get(name) or Word(function, f"a function of {module}")
