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
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    SchedulerMixin,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

from fdpo_fast.config.errors import UserError
from fdpo_fast.files import replacing
from fdpo_fast.models.sizes import PRESETS as PRESETS
from fdpo_fast.models.tokenizer import BEGIN, END, clip_tokenizer, t5_tokenizer


def unet_config(name: str) -> dict[str, Any]:
    """Return the denoiser's configuration, for UNet2DConditionModel."""
    return {"in_channels": 4, "out_channels": 4, **PRESETS[name]["unet"]}


DENOISERS: dict[str, Callable[[str], ModelMixin]] = {
    "unet": lambda name: UNet2DConditionModel(**unet_config(name)),
    "transformer": lambda name: SD3Transformer2DModel(**PRESETS[name]["transformer"]),
}
"""By component, what makes the denoiser of a preset with random weights."""


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


def text_encoder(name: str, key: str) -> PreTrainedModel:
    """Make a text encoder with random weights, in the default dtype."""
    # of three encoders the first gives a pooled embedding, too
    return encoder_of(key, PRESETS[name][key], pooled="text_encoder_3" in PRESETS[name])


def encoder_of(key: str, config: dict[str, Any], pooled: bool = False) -> PreTrainedModel:
    """Make a text encoder of a configuration, whole or what differs from the defaults, with random weights.

    pooled: whether it has a projection, which makes the pooled embedding; a second one always has.
    """
    if key.endswith("_3"):
        return T5EncoderModel(T5Config(**{"vocab_size": 32128, **config}))
    special = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": END, "vocab_size": 49408}
    cls = CLIPTextModelWithProjection if pooled or key.endswith("_2") else CLIPTextModel
    return cls(CLIPTextConfig(**special | config))


def components(name: str) -> dict[str, Callable[[], ModelMixin | PreTrainedModel]]:
    """Return what makes each module of a preset with random weights, in the default dtype."""
    encoders = [key for key in PRESETS[name] if key.startswith("text_encoder")]
    makers: dict[str, Callable[[], ModelMixin | PreTrainedModel]] = {
        key: partial(make, name) for key, make in DENOISERS.items() if key in PRESETS[name]
    }
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
        captions = ["a photo of a cat on a table", "an oil painting of a house"]
        tokenizer = clip_tokenizer(Path(scratch), captions, 77)
        parts: dict[str, Any] = {key: make() for key, make in components(name).items()}
        encoders = [key for key in parts if key.startswith("text_encoder")]
        parts |= {key.replace("text_encoder", "tokenizer"): tokenizer for key in encoders}
        if "text_encoder_3" in parts:
            parts["tokenizer_3"] = t5_tokenizer(captions, 512)
        if len(encoders) == 1:
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
