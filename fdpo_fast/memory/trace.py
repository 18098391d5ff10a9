"""Activations and FLOPs, by running the real model's forward and backward on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fdpo_fast.config.run import Config
from fdpo_fast.loss.function import evaluate
from fdpo_fast.memory.tracker import HostAttention, Tracker
from fdpo_fast.models import quantization, trainable
from fdpo_fast.models.architecture import Architecture
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.models.trainable import CHECKPOINTING
from fdpo_fast.models.vae import without_decoder
from fdpo_fast.progress import progress


@dataclass(frozen=True)
class Trace:
    """Bytes of one micro-batch on one rank, and what is trained. Neither gradients nor weights are activations."""

    saved: int
    """What is kept from forward to backward."""
    forward: int
    """The most at once in forward."""
    backward: int
    """The most at once in backward."""
    backward_with_gradients: int
    """The most at once in backward where gradients stay as they come."""
    backward_with_bucket: int
    """The most at once in backward where gradients are stepped inside it, a bucket at a time."""
    inference: int
    """The most at once in the reference's forward, which has no backward."""
    data: int
    """The micro-batch itself: latents, noisy latents, condition, draws."""
    shapes: tuple[int, ...]
    """The number of elements of each trained parameter."""
    all_shapes: tuple[int, ...]
    """That of each parameter of the model, trained or frozen."""
    trained_bytes: int
    frozen_bytes: int
    whole_bytes: int
    """All weights and buffers in the policy's dtype, none in fewer bits."""
    buffer_bytes: int
    """What is no parameter and yet part of the model: the table of positions of a transformer."""
    flops: int
    """FLOPs of a forward and backward, what is computed again included."""
    inference_flops: int
    """FLOPs of a forward without backward."""

    def work(self, config: Config) -> int:
        """Return the FLOPs of a micro-batch; the reference's forward counts where it is not cached."""
        return self.flops + (self.inference_flops if config.reference.mode != "cached" else 0)

    @property
    def model_bytes(self) -> int:
        """Return the bytes of the whole model as it is held."""
        return self.trained_bytes + self.frozen_bytes + self.buffer_bytes

    @property
    def trained(self) -> int:
        """Return the number of trained elements."""
        return sum(self.shapes)


class _Rehearsal:
    """The policy and a micro-batch as training sees them, on the meta device; to be used under their `mode`."""

    def __init__(self, config: Config, architecture: Architecture) -> None:
        dtype, pairs = DTYPES[config.model.dtype], config.train.pairs_per_micro_batch
        side = config.data.resolution // architecture.factors()[0]
        self.family, denoiser = architecture.family, architecture.denoiser(dtype).train()
        trainable.prepare(denoiser, config.model)
        self.options = config.loss.options()
        shapes = architecture.text_shapes()
        self.mode = HostAttention()
        self.denoiser = denoiser
        self.trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        channels = self.family.channels(architecture.denoiser_config)
        self.noisy = torch.zeros(2 * pairs, channels, side, side, dtype=dtype, device="meta")
        self.draws = torch.zeros(3, pairs, dtype=torch.int64, device="meta")
        self.weight = torch.ones(pairs, dtype=torch.float32, device="meta")
        self.timesteps = torch.zeros(2 * pairs, dtype=torch.int64, device="meta")
        sizes = torch.zeros(2 * pairs, 6, dtype=torch.int64, device="meta")
        # whole captions: a mask that stays on the host has ones
        text = {
            key: torch.ones(
                2 * pairs, *shape, dtype=torch.float32, device="cpu" if key in self.family.on_host else "meta"
            )
            for key, shape in shapes.items()
        }
        self.condition = self.family.condition(text, sizes, config.model)

    @contextmanager
    def tracked(self) -> Iterator[Tracker]:
        """Count what is made within the block; weights count as nothing, gradients apart."""
        tracker = Tracker()
        tracker.ignore(self.denoiser)
        hooks = [parameter.register_post_accumulate_grad_hook(tracker.gradient_ready) for parameter in self.trained]
        with tracker:
            yield tracker
        for hook in hooks:
            hook.remove()

    def predict(self) -> Tensor:
        return self.family.predict(self.denoiser, self.noisy, self.timesteps, self.condition)

    def loss(self) -> Tensor:
        errors = torch.zeros(len(self.noisy), dtype=torch.float64, device=self.noisy.device)
        return evaluate(self.options, self.predict(), errors, self.draws, self.weight)[0].mean()


def trace(config: Config, architecture: Architecture) -> Trace:
    """Trace a micro-batch of the configuration's policy: a second or two for SDXL, and no memory to speak of."""
    choice = config.model.gradient_checkpointing
    return traces(config, architecture, [choice])[choice]


def traces(
    config: Config, architecture: Architecture, choices: Iterable[str] = tuple(CHECKPOINTING)
) -> dict[str, Trace]:
    """Trace the same micro-batch under each of several choices of `model.gradient_checkpointing`."""
    rehearsal = _Rehearsal(config, architecture)
    sizes = [parameter.numel() * parameter.element_size() for parameter in rehearsal.trained]
    everything = sum(p.numel() * p.element_size() for p in rehearsal.denoiser.parameters())
    inputs = (rehearsal.noisy, rehearsal.noisy.float(), rehearsal.draws, *rehearsal.condition.values())
    with rehearsal.mode, torch.no_grad(), rehearsal.tracked() as inference:
        rehearsal.predict()
    buffers = sum(buffer.nbytes for buffer in rehearsal.denoiser.buffers())
    unpacked = quantization.unpacked_bytes(rehearsal.denoiser, config.model)
    by_choice = {}
    for choice in progress(choices, desc="tracing the model", unit=" choices", leave=False):
        trainable.checkpoint(rehearsal.denoiser, choice)
        with rehearsal.mode, rehearsal.tracked() as tracker:
            loss = rehearsal.loss()
            forward, saved = tracker.peak, tracker.others
            tracker.restart()
            if config.backward_twice:
                loss.backward(retain_graph=True)
                rehearsal.denoiser.zero_grad()
            loss.backward()
        by_choice[choice] = Trace(
            saved=saved,
            forward=forward + unpacked,
            backward=tracker.peak + unpacked,
            backward_with_gradients=tracker.peak_with_gradients + unpacked,
            backward_with_bucket=tracker.peak_with_bucket + unpacked,
            inference=inference.peak + unpacked,
            data=sum(tensor.nbytes for tensor in inputs),
            shapes=tuple(parameter.numel() for parameter in rehearsal.trained),
            all_shapes=tuple(parameter.numel() for parameter in rehearsal.denoiser.parameters()),
            trained_bytes=sum(sizes),
            frozen_bytes=quantization.frozen_bytes(rehearsal.denoiser, config.model),
            whole_bytes=everything + buffers,
            buffer_bytes=buffers,
            flops=tracker.flops,
            inference_flops=inference.flops,
        )
        rehearsal.denoiser.zero_grad()
    return by_choice


def flops(config: Config, architecture: Architecture) -> int:
    """Count the FLOPs of a micro-batch: products, convolutions and attention.

    What is computed again counts too, and so does a live reference.
    """
    return trace(config, architecture).work(config)


class VAEPasses(NamedTuple):
    """The most bytes that a VAE takes, weights included, and its work."""

    encoding: int
    """Bytes for a batch of images in `data.vae_dtype`, which fills the cache of latents; of the weights those used."""
    decoding: int
    """Bytes for one image in the policy's dtype, which draws sample grids."""
    flops: int
    """FLOPs of encoding one image."""


def vae_passes(config: Config, architecture: Architecture) -> VAEPasses:
    """Trace what fills the cache of latents and what draws sample grids, at `data.resolution`."""
    data = config.data
    dtypes = DTYPES[data.vae_dtype], DTYPES[config.model.dtype]
    return _vae_passes(architecture, data.resolution, data.encoded_at_once, *dtypes)


@lru_cache(maxsize=8)
def _vae_passes(
    architecture: Architecture, side: int, batch: int, encoder: torch.dtype, decoder: torch.dtype
) -> VAEPasses:
    encode, decode, small = Tracker(), Tracker(), side // architecture.factors()[0]
    with HostAttention(), torch.no_grad():
        vae = without_decoder(architecture.vae(encoder)).eval()
        encode.ignore(vae)
        images = torch.zeros(batch, 3, side, side, device="meta", dtype=encoder)
        with encode:
            posterior = vae.encode(images).latent_dist
            posterior.mean, posterior.std  # noqa: B018  # as `Family.image_encoder` takes them
        held = images.nbytes + _bytes(vae)
        vae = architecture.vae(decoder).eval()
        decode.ignore(vae)
        latents = torch.zeros(1, vae.config.latent_channels, small, small, dtype=decoder, device="meta")
        with decode:
            vae.decode(latents)
    return VAEPasses(encode.peak + held, decode.peak + _bytes(vae), encode.flops // batch)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
