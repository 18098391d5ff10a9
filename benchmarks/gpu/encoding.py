"""How fast `fdpo cache` encodes images of 1024 x 1024 with SDXL's VAE: the command itself, by dtype and compiled.

JPEGs on the machine's disk, a VAE with random weights, an empty cache. Seconds as benchmarks/encoding.py counts them:
from the first word on the cache to its end; what torch.compile takes is in them.
"""

from __future__ import annotations

import sys
from functools import partial

from benchmarks.encoding import LITTLE, Case, pairs, prepare, run
from benchmarks.gpu.lab import Lab, Work, reported
from fdpo_fast.models import presets

WAYS: tuple[tuple[str, ...], ...] = (
    ("data.vae_dtype=fp16",),
    ("data.vae_dtype=bf16",),
    ("data.vae_dtype=fp32",),
    ("data.vae_dtype=fp16", "data.vae_compile=true"),
)
"""What the configuration says of the VAE."""


def ready(lab: Lab) -> Work:
    """Write the pictures."""
    side, images = (64, 8) if lab.rehearse else (1024, 256)
    vae = LITTLE if lab.rehearse else presets.PRESETS["sdxl"]["vae"]
    folder = lab.scratch / lab.stage
    write = partial(pairs, size=(side, side))
    prepare(folder, Case(f"{images // 2} pairs at {side}", images, write, vae, {"resolution": side}))
    return lambda: measure(lab, images, side)


def measure(lab: Lab, images: int, side: int) -> None:
    for way in WAYS[: 1 if lab.rehearse else None]:
        about = {"what": "encoding", "form": ", ".join(way), "images": images, "size": f"{side} x {side}"}
        with reported(lab, **about):
            seconds, processor = run(lab.scratch / lab.stage, sys.executable, {}, way)
            lab.line(**about, seconds=seconds, processor_seconds=processor, images_per_second=images / seconds)
