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
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    SchedulerMixin,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Model,
    T5EncoderModel,
)

from fdpo_fast.config.errors import UserError
from fdpo_fast.files import replacing
from fdpo_fast.models.sizes import PRESETS as PRESETS
from fdpo_fast.models.tokenizer import BEGIN, END, chat_tokenizer, clip_tokenizer, t5_tokenizer

CAPTIONS = ["a photo of a cat on a table", "an oil painting of a house"]
"""The words that a preset's tokenizers know whole."""


def unet_config(name: str) -> dict[str, Any]:
    """Return the denoiser's configuration, for UNet2DConditionModel."""
    return {"in_channels": 4, "out_channels": 4, **PRESETS[name]["unet"]}


def denoiser(name: str) -> ModelMixin:
    """Make the denoiser of a preset with random weights, in the default dtype."""
    config = PRESETS[name].get("transformer") or {"_class_name": "UNet2DConditionModel", **unet_config(name)}
    return getattr(diffusers, config["_class_name"]).from_config(config)


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
    "flow_match": partial(FlowMatchEulerDiscreteScheduler, shift=3.0),
    "flow_match_by_size": partial(FlowMatchEulerDiscreteScheduler, shift=3.0, use_dynamic_shifting=True),
    "flow": partial(
        DPMSolverMultistepScheduler, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    ),
}  # fmt: skip
"""By what a denoiser predicts, the scheduler of its pipeline; the betas are Stable Diffusion's, the shift is SD3's."""


def vae(name: str) -> AutoencoderKL:
    """Make a VAE with random weights, in the default dtype."""
    config = PRESETS[name]["vae"]
    levels = len(config["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return AutoencoderKL(**blocks, **config)


class EncoderKind(NamedTuple):
    """A kind of text encoder."""

    cls: type[PreTrainedModel]
    tokenizer: Callable[[Path, list[str]], PreTrainedTokenizerBase]
    """(scratch folder, captions) -> a tokenizer that knows their words."""
    defaults: dict[str, Any]
    """What the class's own defaults lack."""


_CLIP_TOKENS = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": END, "vocab_size": 49408}
_QWEN = EncoderKind(Qwen3Model, lambda _, captions: chat_tokenizer(captions, 512), {"vocab_size": 151936})
TEXT_ENCODERS = {
    "CLIPTextModel": EncoderKind(CLIPTextModel, partial(clip_tokenizer, length=77), _CLIP_TOKENS),
    "CLIPTextModelWithProjection": EncoderKind(
        CLIPTextModelWithProjection, partial(clip_tokenizer, length=77), _CLIP_TOKENS
    ),
    "T5EncoderModel": EncoderKind(
        T5EncoderModel, lambda _, captions: t5_tokenizer(captions, 512), {"vocab_size": 32128}
    ),
    "Qwen3Model": _QWEN,
    "Qwen3ForCausalLM": _QWEN,
}
"""The kinds of text encoders by the architecture that their configurations name."""


def text_encoder(name: str, key: str) -> PreTrainedModel:
    """Make a text encoder with random weights, in the default dtype."""
    return encoder_of(PRESETS[name][key])


def encoder_of(config: dict[str, Any]) -> PreTrainedModel:
    """Make a text encoder of a configuration, whole or what differs from the defaults, with random weights.

    Raises UserError for one whose architecture is not in `TEXT_ENCODERS`.
    """
    named = (config.get("architectures") or ["CLIPTextModel"])[0]
    if named not in TEXT_ENCODERS:
        raise UserError(f"nobody knows the text encoder '{named}' here: use one of {', '.join(TEXT_ENCODERS)}")
    cls, _, defaults = TEXT_ENCODERS[named]
    return cls(cls.config_class(**defaults | config))


def components(name: str) -> dict[str, Callable[[], ModelMixin | PreTrainedModel]]:
    """Return what makes each module of a preset with random weights, in the default dtype."""
    encoders = [key for key in PRESETS[name] if key.startswith("text_encoder")]
    trained = "transformer" if "transformer" in PRESETS[name] else "unet"
    makers: dict[str, Callable[[], ModelMixin | PreTrainedModel]] = {trained: partial(denoiser, name)}
    return makers | {"vae": lambda: vae(name)} | {key: partial(text_encoder, name, key) for key in encoders}


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
    name: str, folder: Path, *, dtype: torch.dtype = torch.float32, prediction: str | None = None, seed: int = 0
) -> Path:
    """Write the pipeline `name` of `PRESETS` with random weights to `folder`, where it is not yet; returns the folder.

    prediction: what it predicts in place of its own, a name of `SCHEDULERS`. Raises UserError for an unknown name.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset '{name}': use one of {', '.join(PRESETS)}")
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch, default_dtype(dtype), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {key: make() for key, make in components(name).items()}
        encoders = {key: part for key, part in parts.items() if isinstance(part, PreTrainedModel)}
        for key, encoder in encoders.items():
            tokenizer = TEXT_ENCODERS[type(encoder).__name__].tokenizer(Path(scratch), CAPTIONS)
            parts[key.replace("text_encoder", "tokenizer")] = tokenizer
        if PRESETS[name]["pipeline"] == "StableDiffusionPipeline":
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        scheduler = SCHEDULERS[prediction or PRESETS[name].get("prediction", "epsilon")]()
        pipeline = getattr(diffusers, PRESETS[name]["pipeline"])(scheduler=scheduler, **parts)
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
