"""The base `digits`: a StableDiffusionPipeline whose UNet predicts the noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from fdpo_fast.digits.maker import SIZE, Maker, Part, text_config, vae


class UNet(Maker):
    """Makes a small Stable Diffusion 1.5."""

    def parts(self) -> dict[str, Callable[[], Part]]:
        """Return what makes VAE, text encoder and UNet."""
        return {"vae": vae, "text_encoder": lambda: CLIPTextModel(text_config()), "unet": _unet}

    def pipeline(self, modules: dict[str, Part], tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
        """Put modules together beside the scheduler of Stable Diffusion 1.5."""
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        return StableDiffusionPipeline(
            **modules,
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def encode(self, pipeline: StableDiffusionPipeline, captions: list[str]) -> dict[str, Tensor]:
        """Return the text encoder's last hidden states."""
        embeds, _ = pipeline.encode_prompt(captions, torch.device("cpu"), 1, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds}


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
