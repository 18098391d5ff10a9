"""Stable Diffusion 3 and 3.5: a transformer over text and image tokens that predicts a flow (arXiv 2403.03206)."""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel
from torch import Tensor

from fdpo_fast.config.schema import Model
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.family import Family


class StableDiffusion3(Family):
    """The family of Stable Diffusion 3 and 3.5 pipelines; T5 may be absent, its embeddings are zeros then."""

    pipelines = ("StableDiffusion3Pipeline",)
    components = (
        *("transformer", "scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        *("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"),
    )
    denoiser_name = "transformer"
    denoiser_class = SD3Transformer2DModel
    text_components = (
        *("text_encoder", "text_encoder_2", "text_encoder_3"),
        *("tokenizer", "tokenizer_2", "tokenizer_3"),
    )
    text_keys = ("prompt_embeds", "pooled_prompt_embeds")
    text_tokens = 256
    text_dtypes: ClassVar[dict[str, torch.dtype]] = {"text_encoder_3": torch.bfloat16}  # T5-XXL: 9.5 GB, not 19
    preset = "sd35m"
    patch = 2

    def encode_prompt(self, pipeline: DiffusionPipeline, captions: list[str], device: torch.device) -> list[Tensor]:
        """Encode captions to the tokens of CLIP and T5, [n, 77 + tokens, d], and CLIP's pooled states, [n, d']."""
        embeds, _, pooled, _ = pipeline.encode_prompt(
            captions, captions, captions, device=device, do_classifier_free_guidance=False,
            **self.drawing,
        )  # fmt: skip
        return [embeds.float(), pooled.float()]

    @classmethod
    def text_shapes(cls, config: dict, model: Model) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's embeddings: CLIP's 77 tokens and T5's, and the pooled ones."""
        tokens = 77 + cls.tokens(model)
        shapes = (tokens, config["joint_attention_dim"]), (config["pooled_projection_dim"],)
        return dict(zip(cls.text_keys, shapes, strict=True))

    @classmethod
    def predict(cls, unet: Denoiser, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return the transformer's prediction, [n, c, h, w], conditioned on text and pooled text."""
        text, pooled = (condition[key].to(unet.dtype) for key in cls.text_keys)
        return unet(
            hidden_states=noisy.to(unet.dtype), timestep=timesteps, encoder_hidden_states=text,
            pooled_projections=pooled,
        ).sample  # fmt: skip
