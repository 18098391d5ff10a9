"""Weights of scorers, from folders, files or the hub, in the names of `transformers`. Only tensors are unpickled."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from torch import Tensor, nn

from fdpo_fast.config.errors import UserError
from fdpo_fast.files import is_hub_name
from fdpo_fast.models.hub import fetched

Module = TypeVar("Module", bound=nn.Module)


def file_of(name: str) -> Path:
    """Find a local file, or fetch `owner/name:file` of the hub. Raises UserError where there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    repository, colon, file = name.partition(":")
    if not colon or not is_hub_name(repository):
        raise UserError(f"'{name}' is no file here, nor of the hub's form owner/name:file")
    found = fetched("the model", repository, (file,)) / file
    if not found.is_file():
        raise UserError(f"the model '{repository}' of the hub has no {file}")
    return found


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a pickled state dict; UserError where it holds anything else."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError) as error:
        raise UserError(f"{path} is no state dict of tensors: {str(error).splitlines()[0]}") from None
    return state.get("state_dict", state)


def assign(module: Module, state: dict[str, Tensor], prefix: str = "") -> Module:
    """Give a module of the meta device the tensors below `prefix`, in float32; UserError where some are missing."""
    part = {name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)}
    if missing := module.load_state_dict(part, assign=True, strict=False).missing_keys:
        raise UserError(f"the weights lack {prefix}{missing[0]}")
    for owner in module.modules():
        if (numbers := owner._buffers.get("position_ids")) is not None:  # not saved
            owner.position_ids = torch.arange(numbers.shape[-1], dtype=torch.int64, device="cpu")[None]
    return module


_OPEN_CLIP = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""The rules that rename open_clip's CLIP to transformers' CLIPModel."""

_BLIP = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm1\.", ".layer_norm1."),
    (r"\.norm2\.", ".layer_norm2."),
)
"""The rules that rename the BLIP of its authors, which ImageReward has, to transformers'."""


def _renamed(state: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict for `CLIPModel`: open_clip keeps q, k and v in one matrix, and projections as x @ W."""
    converted = {}
    for name, tensor in _renamed(state, _OPEN_CLIP).items():
        if match := re.search(r"in_proj_(weight|bias)$", name):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[name[: match.start()] + f"{letter}_proj.{match[1]}"] = part
        elif name in ("visual.proj", "text_projection"):
            converted[{"visual.proj": "visual_projection.weight"}.get(name, "text_projection.weight")] = tensor.T
        elif name != "attn_mask":
            converted[name] = tensor
    return converted


def from_blip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of vision model and text encoder for `BlipForImageTextRetrieval` and the like."""
    return _renamed(state, _BLIP)
