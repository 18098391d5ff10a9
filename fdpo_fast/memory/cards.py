"""Cards by name: what their makers state, and the utilisation that others have published of training on them."""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """A GPU as its maker states it, with the utilisation that others have published."""

    tflops: float
    """Peak of dense bf16 matrix products with sums in float32, by the maker's data sheet, TFLOP/s."""
    memory: int
    """The memory of the card in GB, as its maker counts them."""
    mfu: tuple[float, float] | None = None
    """Lowest and highest published share of that peak that goes into the model's own FLOPs, recomputation left out."""
    source: str = ""
    """Whose measurement it is, and of what; never ours."""


CARDS: dict[str, Card] = {
    "A100": Card(312, 80, (0.287, 0.287), "MosaicML, Stable Diffusion 2 pre-training"),
    "H100": Card(989, 80, (0.195, 0.32), "bigASP 2.5, SDXL at 1024, all weights (19.5 %); MLPerf, SD 2 (32 %)"),
    "H200": Card(989, 141, (0.35, 0.35), "a published run of diffusion training whose model we do not know"),
    "RTX 4090": Card(165, 24, (0.12, 0.25), "runs of users of SDXL, all weights"),
    "RTX 3090": Card(71, 24),
    "L40S": Card(362, 48),
    "H100 PCIe": Card(756, 80),
    "H100 NVL": Card(835, 94),
    "A40": Card(150, 48),
    "A10G": Card(70, 24),
    "L4": Card(121, 24),
}
"""A name stands for the card whose driver calls it so; the longest that fits counts, and "H100" is the SXM."""


ENCODING = (0.25, 0.5)
"""Lowest and highest share of a card's peak that a VAE's encoder is assumed to reach; not measured by us.

It rests on one published timing, that of one image of 1024 x 1024 in diffusers' documentation of remote VAEs: 0.38 and
0.42 of an RTX 4090, 0.51 and 0.52 of a 3090, in 16 bits and in float32 by the memory that is stated beside.
"""
TF32 = 0.5
"""The peak in TF32 as a share of that in bf16: torch computes convolutions in float32 so, unless it is told not to."""


def encoding_hours(card: Card, flops: float, vae_dtype: str) -> tuple[float, float]:
    """Estimate the hours of a VAE's encoder at the highest and at the lowest share of the card's peak."""
    peak = card.tflops * 1e12 * (TF32 if vae_dtype == "fp32" else 1)
    slow, fast = (flops / (share * peak) / 3600 for share in ENCODING)
    return fast, slow


def seconds(card: Card, model_flops: float, run_flops: float) -> tuple[float, float] | None:
    """Return the seconds at the fastest and at the slowest published utilisation; None for a card without one.

    model_flops: of the model's own forward and backward, which utilisation is a share of; run_flops: of what is run,
    recomputation included. The time of the first grows by the second over the first.
    """
    if card.mfu is None:
        return None
    recomputed = run_flops / model_flops
    slow, fast = (model_flops / (share * card.tflops * 1e12) * recomputed for share in card.mfu)
    return fast, slow
