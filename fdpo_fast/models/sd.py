"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, epsilon or v-prediction."""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.family import Family


class StableDiffusion(Family):
    """The family of Stable Diffusion 1.x and 2.x pipelines."""

    pipelines = ("StableDiffusionPipeline",)
    components = (
        *("vae", "text_encoder", "tokenizer", "unet", "scheduler"),
        *("safety_checker", "feature_extractor", "image_encoder"),
    )
    text_components = ("text_encoder", "tokenizer")
    text_keys = ("prompt_embeds",)
    preset = "sd15"
    pipeline_options: ClassVar[dict] = {"safety_checker": None, "requires_safety_checker": False}

    def encode_prompt(self, pipeline: DiffusionPipeline, captions: list[str], device: torch.device) -> list[Tensor]:
        """Encode captions to the text encoder's last hidden states, [n, 77, d]."""
        embeds, _ = pipeline.encode_prompt(captions, device, 1, do_classifier_free_guidance=False)
        return [embeds]

    @classmethod
    def predict(cls, unet: Denoiser, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return the UNet's prediction, [n, c, h, w], conditioned on the text alone."""
        return unet(noisy.to(unet.dtype), timesteps, condition["prompt_embeds"].to(unet.dtype)).sample
