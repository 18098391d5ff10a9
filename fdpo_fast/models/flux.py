"""Flux.1: a transformer over packed latents that predicts a flow, distilled from guidance or not."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from fdpo_fast.config.schema import Model
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.family import Family


@lru_cache(maxsize=256)
def _places(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return where the squares of latents are, [rows columns, 3] float32; made on the host, once for a bucket."""
    return FluxPipeline._prepare_latent_image_ids(1, rows, columns, device, torch.float32)


class Flux(Family):
    """The family of Flux.1 pipelines; what a model was distilled from guidance is told is `model.guidance`."""

    pipelines = ("FluxPipeline",)
    components = (
        *("transformer", "scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        *("image_encoder", "feature_extractor"),
    )
    denoiser_name = "transformer"
    denoiser_class = FluxTransformer2DModel
    text_components = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    text_keys = ("prompt_embeds", "pooled_prompt_embeds")
    text_tokens = 512
    text_dtypes: ClassVar[dict[str, torch.dtype]] = {"text_encoder_2": torch.bfloat16}  # T5-XXL: 9.5 GB, not 19
    preset = "flux"
    patch = 2

    def encode_prompt(self, pipeline: DiffusionPipeline, captions: list[str], device: torch.device) -> list[Tensor]:
        """Encode captions to T5's tokens, [n, tokens, d], and CLIP's pooled states, [n, d']."""
        embeds, pooled, _ = pipeline.encode_prompt(captions, captions, device, **self.drawing)
        return [embeds.float(), pooled.float()]

    @classmethod
    def channels(cls, config: dict) -> int:
        """Return the channels of the latents, of which the transformer takes squares."""
        return config["in_channels"] // cls.patch**2

    @classmethod
    def text_shapes(cls, config: dict, model: Model) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's embeddings: T5's tokens, and CLIP's pooled state."""
        shapes = (cls.tokens(model), config["joint_attention_dim"]), (config["pooled_projection_dim"],)
        return dict(zip(cls.text_keys, shapes, strict=True))

    @classmethod
    def predict(cls, unet: Denoiser, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return the transformer's prediction, [n, c, h, w], conditioned on text, pooled text and guidance."""
        text, pooled = (condition[key].to(unet.dtype) for key in cls.text_keys)
        rows, columns = noisy.shape[-2:]
        pred = unet(
            hidden_states=cls.packed(noisy.to(unet.dtype)), timestep=timesteps / 1000, encoder_hidden_states=text,
            pooled_projections=pooled, guidance=condition.get("guidance"), txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=_places(rows // cls.patch, columns // cls.patch, text.device),
        ).sample  # fmt: skip
        return FluxPipeline._unpack_latents(pred, rows, columns, vae_scale_factor=1)

    def sampler(self, unet: Denoiser, device: torch.device) -> DiffusionPipeline:
        """Load the base pipeline ready to draw; it takes latents in the dtype of T5's embeddings: the denoiser's."""
        pipeline = super().sampler(unet, device)
        encode = pipeline.encode_prompt

        def encode_prompt(*args: Any, **options: Any) -> tuple[Tensor, ...]:
            return tuple(tensor.to(unet.dtype) for tensor in encode(*args, **options))

        pipeline.encode_prompt = encode_prompt
        return pipeline

    @classmethod
    def packed(cls, latents: Tensor) -> Tensor:
        """Return latents as rows of squares of two by two, [n, h w / 4, 4 c]."""
        return FluxPipeline._pack_latents(latents, *latents.shape)
