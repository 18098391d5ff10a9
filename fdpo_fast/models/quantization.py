"""A frozen base in 4 or 8 bits under its adapters, by bitsandbytes and through diffusers' own quantisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers import BitsAndBytesConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model
from fdpo_fast.models.precision import DTYPES

QUANTISERS: dict[str, Callable[[torch.dtype], BitsAndBytesConfig]] = {
    "nf4": lambda dtype: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    ),
    "int8": lambda dtype: BitsAndBytesConfig(load_in_8bit=True),
}
"""By `model.quantization`, how diffusers has bitsandbytes hold the linear layers of a base."""


def quantiser(model: Model) -> BitsAndBytesConfig | None:
    """Return how the base is held in fewer bits; None where it is not. Raises UserError where no CUDA GPU is there."""
    if model.quantization is None:
        return None
    if not torch.cuda.is_available():
        raise UserError("model.quantization needs a CUDA GPU, for which bitsandbytes is made: set it to null")
    return QUANTISERS[model.quantization](DTYPES[model.dtype])


def frozen_bytes(denoiser: nn.Module, model: Model) -> int:
    """Count the bytes that the frozen weights of a denoiser take on a GPU, which may be made on the meta device."""
    held = _HELD.get(model.quantization or "", lambda weight: 0)
    layers = {id(weight): held(weight) for weight in quantised(denoiser)} if model.quantization else {}
    frozen = (parameter for parameter in denoiser.parameters() if not parameter.requires_grad)
    return sum(layers.get(id(parameter), parameter.nbytes) for parameter in frozen)


def unpacked_bytes(denoiser: nn.Module, model: Model) -> int:
    """Return the bytes of the largest layer as it is computed with, beside what it is held in; 0 without layers."""
    if not model.quantization:
        return 0
    return max((weight.nbytes for weight in quantised(denoiser)), default=0)


def quantised(denoiser: nn.Module) -> Iterator[Tensor]:
    """Yield the weights that are held in fewer bits: of every linear layer of the base, none of an adapter's."""
    adapters = {
        id(layer)
        for module in denoiser.modules()
        if isinstance(module, BaseTunerLayer)
        for name in module.adapter_layer_names
        for layer in getattr(module, name).values()
    }
    whole = getattr(denoiser, "_keep_in_fp32_modules", None) or []
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and id(module) not in adapters and not any(part in name for part in whole):
            yield module.weight


def _nf4_bytes(weight: Tensor) -> int:
    """Count the bytes of a weight in NF4: half a byte each, a byte for 64 of them, and 4 for 256 of those."""
    blocks = -(-weight.numel() // 64)
    return -(-weight.numel() // 2) + blocks + 4 * (-(-blocks // 256)) + _TABLES


def _int8_bytes(weight: Tensor) -> int:
    """Count the bytes of a weight in int8: one each, and a float for each row."""
    return weight.numel() + 4 * weight.shape[0]


_TABLES = 4 * (16 + 256) + 4
"""The bytes of the tables and the offset that bitsandbytes keeps for each weight in NF4."""
_HELD: dict[str, Callable[[Tensor], int]] = {"nf4": _nf4_bytes, "int8": _int8_bytes}
