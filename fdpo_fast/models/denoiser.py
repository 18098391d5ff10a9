"""The type of a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Denoiser(nn.Module):
    """A denoiser of diffusers by what is used of it: diffusers promises no types, a `nn.Module` has none of these."""

    dtype: torch.dtype
    config: Any
    """The denoiser's own configuration, whose keys read as attributes too."""
    add_adapter: Callable[[Any], None]
    compile_repeated_blocks: Callable[..., None]
    enable_gradient_checkpointing: Callable[[], None]
    save_config: Callable[[Path], None]
    enable_xformers_memory_efficient_attention: Callable[[], None]
