"""Pairs of noise, where a measurement needs some and not which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pairs(folder: Path, count: int, side: int) -> None:
    """Write so many pairs of squares with their captions, as two folders `w` and `l`; always the same."""
    draw = np.random.default_rng(0)
    for half in ("w", "l"):
        (folder / half).mkdir(parents=True)
        for row in range(count):
            pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / half / f"{row}.jpg")
            (folder / half / f"{row}.txt").write_text(f"picture {row}")
