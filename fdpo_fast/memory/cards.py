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
