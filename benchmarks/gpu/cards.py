"""What cards can do at most, by the makers' tables."""

from __future__ import annotations

BF16_TFLOPS = {
    "H100 SXM": 989,
    "H100 80GB HBM3": 989,  # how the driver calls the SXM
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H200": 989,
    "A100": 312,
    "A40": 150,
    "A10G": 70,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""Dense bfloat16 products summed in float32, TFLOP/s, by what the driver's name of a card holds."""


def peak_tflops(name: str) -> float | None:
    """Of a card by the driver's name; None for one that is not in the table. The longest entry that fits counts."""
    words = f" {name} ".replace("-", " ")
    fits = [card for card in BF16_TFLOPS if f" {card} " in words]
    return float(BF16_TFLOPS[max(fits, key=len)]) if fits else None
