"""The VAE's encoder: pixels to the moments of their latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from fdpo_fast.data.images import to_vae

ImageEncoder = Callable[[Tensor], tuple[Tensor, Tensor]]


def without_decoder(vae: AutoencoderKL) -> AutoencoderKL:
    """Take from a VAE, in place, the half that encoding has no use for."""
    vae.decoder = vae.post_quant_conv = None
    return vae


def encoder(vae: AutoencoderKL, device: torch.device, dtype: torch.dtype, compiled: bool) -> ImageEncoder:
    """Return a function of uint8 pixels [n, 3, h, w] on the CPU that gives their latents' mean and deviation.

    Both are float32 on the device and scaled as the denoiser takes them, [n, c, h/f, w/f]. The VAE computes in
    `dtype`. Nothing waits for a GPU: the next pixels can be handed over while it is at work on these.
    """
    vae, cuda = without_decoder(vae).eval(), device.type == "cuda"
    layout = torch.channels_last if cuda or dtype != torch.float32 else torch.preserve_format
    vae.to(device, memory_format=layout)
    if compiled:
        vae.encoder.compile()

    @torch.inference_mode()
    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        handed = pixels.pin_memory() if cuda else pixels
        images = to_vae(handed.to(device, non_blocking=True)).to(dtype, memory_format=layout)
        parameters = vae.encode(images).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(parameters.float())
        scale = vae.config.scaling_factor
        return (posterior.mean - (vae.config.shift_factor or 0)) * scale, posterior.std * scale

    return encode
