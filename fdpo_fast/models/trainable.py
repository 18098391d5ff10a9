"""What of a denoiser is trained, and how its layers are run; policy and reference are made ready by the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import Parameter

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import LoRA, Model
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.graphs import Graphs
from fdpo_fast.models.precision import DTYPES

CHECKPOINTING: dict[str, Callable[[nn.Module], bool]] = {
    "off": lambda module: False,
    "per_block": lambda module: isinstance(module, ModelMixin) and not isinstance(module, UNet2DConditionModel),
    "full": lambda module: True,
}
"""Whether a module computes its layers again in the backward pass, by `model.gradient_checkpointing`.

A transformer does so with each of its blocks, in a UNet too; the UNet's down, mid and up blocks with their resnets.
"""


SHAPES = 256
"""How many versions torch.compile may make of a block: one for each size of its inputs.

Beyond, it would run the block as it stands, by other kernels than the reference's.
"""


def ready(unet: Denoiser, model: Model, *, reference: bool = False) -> list[Parameter]:
    """Make a denoiser run as training runs it: adapter, checkpointing, mode, compiled blocks; returns what is trained.

    The reference is made ready by this too, whatever it is frozen for: libraries choose kernels by all of these, and in
    bf16 another kernel's rounding, times ratio_scale, is as large as a margin. A fresh adapter adds exact zeros.
    """
    trained = prepare(unet, model)
    unet.train()
    if model.compile:
        torch._dynamo.config.cache_size_limit = SHAPES
        # a version for each shape, so that what a batch is computed by does not depend on those before it
        unet.compile_repeated_blocks(fullgraph=True, dynamic=False)
    if model.cuda_graphs:
        Graphs(unet, trains=not reference)
    return trained


@contextmanager
def without_adapter(unet: Denoiser) -> Iterator[None]:
    """Run a policy as its base within the block: what the adapter adds is multiplied by zero.

    Taking the adapter out of the graph would leave its layers without gradients, and they would take other kernels.
    """
    scale_lora_layers(unet, 0.0)
    try:
        yield
    finally:
        unscale_lora_layers(unet, 0.0)


def prepare(unet: Denoiser, model: Model) -> list[Parameter]:
    """Add an adapter, unless it has one, and switch checkpointing on as the configuration says.

    Returns what is to be trained.
    """
    if model.train == "lora" and not getattr(unet, "peft_config", None):
        add_lora(unet, model.lora)
        for parameter in unet.parameters():
            if parameter.requires_grad:  # beside quantised weights an adapter would be in float32
                parameter.data = parameter.data.to(DTYPES[model.dtype])
    checkpoint(unet, model.gradient_checkpointing)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def misfits(unet: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Name what a checkpoint's state lacks of the trained weights, and what in it no tensor of the denoiser is called.

    Frozen weights are the base's: a checkpoint need not have them, and those of older versions do.
    """
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    return sorted(trained - state.keys() | state.keys() - unet.state_dict().keys())


def checkpoint(unet: Denoiser, choice: str) -> None:
    """Switch gradient checkpointing to a choice of CHECKPOINTING."""
    unet.enable_gradient_checkpointing()
    modules: Iterable[Any] = unet.modules()  # of an `nn.Module` no attribute is a bool
    for module in modules:
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = CHECKPOINTING[choice](module)


def add_lora(unet: Denoiser, lora: LoRA) -> None:
    """Freeze `unet` and add a trainable adapter that changes nothing yet.

    Raises UserError for a target that no layer is named by, or that no adapter can be made for.
    """
    check_targets(unet, lora.targets)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets))


def check_targets(unet: nn.Module, targets: Iterable[str]) -> None:
    """Raise UserError for a target of LoRA that no layer is named by, or that no adapter can be made for."""
    for target in targets:
        modules = [module for name, module in unet.named_modules() if f".{name}".endswith(f".{target}")]
        if not modules:
            raise UserError(f"model.lora.targets: no layer of the denoiser is named '{target}'")
        if other := next((module for module in modules if not isinstance(module, nn.Linear | nn.Conv2d)), None):
            raise UserError(f"model.lora.targets: '{target}' is a {type(other).__name__}, not linear or a convolution")
