"""What caches and plans need to know of a pipeline, read from the configurations of its components."""

from __future__ import annotations

from dataclasses import dataclass

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model

UNGUIDED = ("black-forest-labs/FLUX.1-schnell",)
"""The hub's names of models of a distilled family that were not distilled from guidance."""


def shrinks(config: dict) -> int:
    """Return by how much a VAE, or a UNet, of this configuration divides a side on the way to its smallest layers."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def check_guidance(model: Model, denoiser_config: dict) -> None:
    """Raise UserError where a denoiser that is told its guidance is told none, or another one some."""
    if denoiser_config.get("guidance_embeds") and model.guidance is None:
        raise UserError(
            f"model.guidance is missing: '{model.base}' was distilled from guidance and is told a value; its pipeline "
            "has 3.5, some trainers 1.0"
        )
    if model.guidance is not None and not denoiser_config.get("guidance_embeds"):
        raise UserError(
            f"model.guidance is for models distilled from guidance, and '{model.base}' is told none: set it to null"
        )


def check_channels(model: Model, vae_config: dict, channels: int) -> None:
    """Raise UserError where a VAE gives latents of other channels than a denoiser takes."""
    given = vae_config.get("latent_channels", 4)
    if given != channels:
        raise UserError(
            f"the VAE of {model.vae or model.base} gives latents of {given} channels and the denoiser of {model.base} "
            f"takes {channels}: set model.vae to null, or to one of the base's kind"
        )


@dataclass(frozen=True)
class Facts:
    """What caches need to know of a pipeline, read from its files once."""

    vae_factor: int
    """By how much the VAE divides a side of the image on the way to the latents."""
    denoiser_factor: int
    """By how much the denoiser divides a side of the latents on the way to its smallest layers."""
    channels: int
    """The channels of the latents that the denoiser takes."""
    text_keys: tuple[str, ...]
    """Names of the text embeddings."""
    text_shapes: dict[str, tuple[int, ...]]
    """The shapes of a caption's embeddings, by name."""
    vae: str
    """The SHA-256 over the VAE's files."""
    text: str
    """The SHA-256 over the files of what makes text embeddings."""
    text_tokens: int | None
    """How many tokens a caption has, where `model.text_tokens` may say so."""
    masks: frozenset[str]
    """Names of the embeddings that say where a caption's tokens are."""
