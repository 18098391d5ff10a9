"""Stable Diffusion XL: two text encoders, pooled embeddings, micro-conditioning (arXiv 2307.01952, section 2.2)."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fdpo_fast.config.schema import Model
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.family import Family


class StableDiffusionXL(Family):
    """The family of Stable Diffusion XL pipelines."""

    pipelines = ("StableDiffusionXLPipeline",)
    components = (
        *("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler"),
        *("image_encoder", "feature_extractor"),
    )
    text_components = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    text_keys = ("prompt_embeds", "pooled_prompt_embeds")
    preset = "sdxl"

    def encode_prompt(self, pipeline: DiffusionPipeline, captions: list[str], device: torch.device) -> list[Tensor]:
        """Encode captions to both encoders' hidden states, [n, 77, d], and the second one's pooled state, [n, d']."""
        embeds, _, pooled, _ = pipeline.encode_prompt(captions, device=device, do_classifier_free_guidance=False)
        return [embeds, pooled]

    @classmethod
    def text_shapes(cls, config: dict, model: Model) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's embeddings, the pooled one's by the width of the UNet's class embedding."""
        # the class embedding takes the pooled embedding and six sizes
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return {**super().text_shapes(config, model), cls.text_keys[1]: (pooled,)}

    @classmethod
    def condition(cls, text: dict[str, Tensor], sizes: Tensor, model: Model) -> dict[str, Tensor]:
        """Return the text with the micro-conditioning beside it."""
        # original height and width, crop top and left, target height and width: each image's own
        return {**text, "time_ids": sizes.float()}

    @classmethod
    def predict(cls, unet: Denoiser, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return the UNet's prediction, [n, c, h, w], conditioned on text, pooled text and sizes."""
        text, pooled = (condition[key].to(unet.dtype) for key in cls.text_keys)
        added = {"text_embeds": pooled, "time_ids": condition["time_ids"]}  # in float32: bf16 has no 1023
        return unet(noisy.to(unet.dtype), timesteps, text, added_cond_kwargs=added).sample
