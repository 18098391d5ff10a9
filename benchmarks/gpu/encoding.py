"""How fast `fdpo cache` encodes images of 1024 x 1024 with SDXL's VAE: the command itself, by dtype and compiled.

JPEGs on the machine's disk, a VAE with random weights, an empty cache. Seconds as benchmarks/encoding.py counts them:
from the first word on the cache to its end; what torch.compile takes is in them.
"""

from __future__ import annotations

import sys
from functools import partial

from benchmarks.encoding import LITTLE, Case, pairs, prepare, run
from benchmarks.gpu.lab import Lab, Work
from fdpo_fast.models import presets

WAYS: tuple[dict[str, str], ...] = (
    {"vae_dtype": "fp16"},
    {"vae_dtype": "fp32"},
    {"vae_dtype": "fp16", "vae_compile": "true"},
    {"vae_dtype": "bf16"},
)
"""What the configuration says of the VAE, in its section `data`."""


def ready(lab: Lab) -> Work:
    """Write the pictures."""
    side, images = (64, 8) if lab.rehearse else (1024, 256)
    vae = LITTLE if lab.rehearse else presets.PRESETS["sdxl"]["vae"]
    write = partial(pairs, size=(side, side))
    prepare(lab.scratch / lab.stage, Case(f"{images // 2} pairs at {side}", images, write, vae, {"resolution": side}))
    return lambda: measure(lab, images, side)


def measure(lab: Lab, images: int, side: int) -> None:
    for way in WAYS[: 1 if lab.rehearse else None]:
        changes = [word for key, value in way.items() for word in ("--set", f"data.{key}={value}")]
        seconds, processor = run(lab.scratch / lab.stage, sys.executable, {}, changes)
        lab.line(
            what="encoding", form=", ".join(changes[1::2]), images=images, size=f"{side} x {side}", seconds=seconds,
            processor_seconds=processor, images_per_second=images / seconds,
        )  # fmt: skip
