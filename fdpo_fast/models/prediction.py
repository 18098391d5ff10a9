"""A denoiser run on a batch as training runs it, and the errors that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fdpo_fast import noise
from fdpo_fast.loss.function import fdpo_loss
from fdpo_fast.ops.pairs import both
from fdpo_fast.ops.target import Target

if TYPE_CHECKING:
    from fdpo_fast.cache.dataset import Batch
    from fdpo_fast.models.denoiser import Denoiser
    from fdpo_fast.models.family import Family


class Prediction(NamedTuple):
    """What a denoiser made of a batch, and what it is measured by."""

    pred: Tensor  # [2b, c, h, w]
    target: Target
    fed: Tensor  # [b]: the timesteps as the denoiser is told them


def predict(family: Family, unet: Denoiser, batch: Batch) -> Prediction:
    """Noise a batch as its draws say, and denoise it once."""
    process = family.process(batch.latents.shape, batch.latents.device)
    noisy, timesteps = noise.add_noise(
        batch.latents, batch.draws, process.signal, process.sigma, density=batch.density, dtype=unet.dtype
    )
    if family.model.channels_last:
        noisy = noisy.contiguous(memory_format=torch.channels_last)
    fed = process.fed[timesteps]
    pred = family.predict(unet, noisy, both(fed), batch.condition)
    return Prediction(pred, process.target(batch.latents, batch.draws, timesteps), fed)


@contextmanager
def as_in_training() -> Iterator[None]:
    """Run a reference model by the kernels that training takes, and keep nothing for a backward pass.

    torch chooses them by whether gradients are required (`should_fold` of at::matmul is one place). Frozen, SDXL's
    linear layers behind a permuted input round another way, and in bf16 its errors differ by 4e-4 from those in
    training: as a logit, times ratio_scale, by 1. The model must have been made ready as the policy was
    (`trainable.ready`).
    """
    with torch.enable_grad(), saved_tensors_hooks(lambda tensor: None, _refuse):
        yield


def _refuse(nothing: None) -> Tensor:
    raise RuntimeError("a reference model has no backward pass: nothing was kept for it")


@torch.no_grad()
def errors(pred: Tensor, target: Target) -> Tensor:
    """Return the mean squared error of each sample, [2b] float64: to the last bit the loss's own sum.

    The loss tells by how much the error exceeds a given one, in float32. What was found is given back to it twice; the
    differences are exact, and three times 24 bits hold all 53.
    """
    error = torch.zeros(len(pred), dtype=torch.float64, device=pred.device)
    for _ in range(3):
        _, stats = fdpo_loss(pred, error, target, divergence="reverse_kl", beta=1.0, ratio_scale=1.0, reduction="none")
        error = error - torch.cat([stats.log_ratio_w, stats.log_ratio_l])
    return error
