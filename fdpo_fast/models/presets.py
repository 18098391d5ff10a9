"""Pipelines with random weights, built from their configurations alone: nothing is downloaded.

`python -m fdpo_fast.models.presets sdxl FOLDER --dtype bf16` writes a diffusers folder of full size, to try a run, its
speed and its memory before the real weights are fetched; the tiny ones are for tests.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    ModelMixin,
    SchedulerMixin,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from fdpo_fast.config.errors import UserError
from fdpo_fast.files import replacing
from fdpo_fast.models.tokenizer import BEGIN, END, clip_tokenizer

_SD_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SDXL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
_TINY_VAE = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 32}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
_CLIP_BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "projection_dim": 32,
    "vocab_size": 1000,
}

PRESETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "pipeline": "StableDiffusionPipeline",
        "unet": _SD_BLOCKS
        | {
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
            "sample_size": 64,
        },
        "vae": _VAE | {"scaling_factor": 0.18215},
        "text_encoder": _CLIP_L,
    },
    "sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "unet": _SDXL_BLOCKS
        | {
            "block_out_channels": (320, 640, 1280),
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
        },
        "vae": _VAE | {"scaling_factor": 0.13025},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_BIG_G,
    },
    "tiny_sd": {
        "pipeline": "StableDiffusionPipeline",
        "unet": {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (4, 8),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": 8,
            "norm_num_groups": 2,
            "sample_size": 32,
        },
        "vae": _TINY_VAE | {"scaling_factor": 0.18215},
        "text_encoder": _TINY_CLIP | {"hidden_size": 8, "projection_dim": 8},
    },
    "tiny_sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "unet": {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (2, 4),
            "layers_per_block": 2,
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 80,  # 6 * 8 + 32
            "cross_attention_dim": 64,
            "norm_num_groups": 1,
            "sample_size": 32,
        },
        "vae": _TINY_VAE | {"scaling_factor": 0.13025},
        "text_encoder": _TINY_CLIP,
        "text_encoder_2": _TINY_CLIP | {"hidden_act": "gelu"},
    },
}
"""What differs, by preset and component, from the defaults of the models' classes."""


def unet_config(name: str) -> dict[str, Any]:
    """Return the denoiser's configuration, for UNet2DConditionModel."""
    return {"in_channels": 4, "out_channels": 4, **PRESETS[name]["unet"]}


_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_DDPM = partial(DDPMScheduler, **_BETAS, clip_sample=False)
SCHEDULERS: dict[str, Callable[[], SchedulerMixin]] = {
    "epsilon": _DDPM,
    "v_prediction": partial(_DDPM, prediction_type="v_prediction"),
    "v_zero_snr": partial(
        DDIMScheduler, **_BETAS, clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    ),
    "sample": partial(_DDPM, prediction_type="sample"),
    "flow": partial(
        DPMSolverMultistepScheduler, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    ),
}  # fmt: skip
"""By what a UNet predicts, the scheduler of its pipeline; the betas are Stable Diffusion's."""


def vae(name: str) -> AutoencoderKL:
    """Make a VAE with random weights, in the default dtype."""
    config = PRESETS[name]["vae"]
    levels = len(config["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return AutoencoderKL(**blocks, **config)


def text_encoder(name: str, key: str) -> CLIPTextModel:
    """Make a text encoder with random weights, in the default dtype."""
    config = CLIPTextConfig(
        bos_token_id=BEGIN, eos_token_id=END, pad_token_id=END, **{"vocab_size": 49408, **PRESETS[name][key]}
    )
    return text_encoder_class(key)(config)


def text_encoder_class(key: str) -> type[CLIPTextModel]:
    """Return the class of a text encoder; the second one has a projection, which makes the pooled embedding."""
    return CLIPTextModelWithProjection if key.endswith("_2") else CLIPTextModel


def components(name: str) -> dict[str, Callable[[], ModelMixin | PreTrainedModel]]:
    """Return what makes each module of a preset with random weights, in the default dtype."""
    encoders = [key for key in PRESETS[name] if key.startswith("text_encoder")]
    makers = {"unet": lambda: UNet2DConditionModel(**unet_config(name)), "vae": lambda: vae(name)}
    return makers | {key: partial(text_encoder, name, key) for key in encoders}


def configs(makers: dict[str, Callable[[], ModelMixin | PreTrainedModel]]) -> dict[str, dict[str, Any]]:
    """Return the complete configuration of each component, as its config.json has it; no weights are made."""
    with torch.device("meta"):
        modules = {name: make() for name, make in makers.items()}
    complete = {}
    for name, module in modules.items():
        if isinstance(module, PreTrainedModel):
            complete[name] = module.config.to_dict() | {"architectures": [type(module).__name__]}
        else:
            complete[name] = dict(module.config)
    return complete


def build(
    name: str, folder: Path, *, dtype: torch.dtype = torch.float32, prediction: str = "epsilon", seed: int = 0
) -> Path:
    """Write the pipeline `name` of `PRESETS` with random weights to `folder`, where it is not yet; returns the folder.

    Raises UserError for an unknown name.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset '{name}': use one of {', '.join(PRESETS)}")
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch, default_dtype(dtype), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer(Path(scratch), ["a photo of a cat on a table", "an oil painting of a house"], 77)
        parts: dict[str, Any] = {key: make() for key, make in components(name).items()}
        encoders = [key for key in parts if key.startswith("text_encoder")]
        parts |= {key.replace("text_encoder", "tokenizer"): tokenizer for key in encoders}
        if len(encoders) == 1:
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = getattr(diffusers, PRESETS[name]["pipeline"])(scheduler=SCHEDULERS[prediction](), **parts)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as written:
            pipeline.save_pretrained(written)
    return folder


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make weights in `dtype` within the block, so that a full-size model never exists in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    options = parser.parse_args()
    print(build(options.name, options.folder, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]))
