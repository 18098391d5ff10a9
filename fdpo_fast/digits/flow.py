"""The base `digits-flow`: a StableDiffusion3Pipeline whose transformer predicts a flow; it has no T5."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.digits.maker import SIZE, Maker, Part, text_config, vae

WIDTH, HEADS = 96, 4


class Flow(Maker):
    """Makes a small Stable Diffusion 3."""

    def parts(self) -> dict[str, Callable[[], Part]]:
        """Return what makes VAE, both text encoders and the transformer."""
        return {
            "vae": lambda: vae(shift_factor=0.0),  # what a pipeline of SD3 subtracts: None would be an error
            "text_encoder": _text_encoder,
            "text_encoder_2": _text_encoder,
            "transformer": _transformer,
        }

    def pipeline(self, modules: dict[str, Part], tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
        """Put modules together; one tokenizer serves both encoders."""
        return StableDiffusion3Pipeline(
            **modules,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            text_encoder_3=None,
            tokenizer_3=None,
            # 16 tokens an image: nothing to shift for
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        )

    def encode(self, pipeline: StableDiffusion3Pipeline, captions: list[str]) -> dict[str, Tensor]:
        """Return the text encoders' hidden states, with zeros in place of T5's, and their pooled ones."""
        tokens = EMBEDDED["digits-flow"].text_tokens
        embeds, _, pooled, _ = pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=tokens
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _text_encoder() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(text_config(projection_dim=32))


def _transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        caption_projection_dim=WIDTH,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        pos_embed_max_size=SIZE // 4 // 2,
        qk_norm="rms_norm",
    )
