"""What decides by which kernels libraries compute a denoiser: where two runs differ in it, their rounding may too."""

from __future__ import annotations

from typing import Any

import torch

from fdpo_fast.config.schema import Model
from fdpo_fast.ops import library


def kernels(model: Model, pairs: int, device: torch.device) -> dict[str, Any]:
    """Return the choices for a micro-batch of `pairs` pairs on a device, by name, as a cache's manifest holds them.

    Reference errors that were computed under other choices are those of a slightly different model: in bf16 they move
    a margin by as much as a step of training does.
    """
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.backends.cpu.get_cpu_capability()}",
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "pairs": pairs,
        "attention": model.attention,
        "channels_last": model.channels_last,
        "compile": model.compile,
        "cuda_graphs": model.cuda_graphs,
        # it decides what a compiled block keeps for backward, and so what it can fuse
        "checkpointing": model.gradient_checkpointing if model.compile else None,
        "adapter": sorted(model.lora.targets) if model.train == "lora" else None,
        "loss": library.chosen(None, device, torch.float32),
    }
