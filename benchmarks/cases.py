"""The problems that are timed: latents of which size, how many pairs, in which dtype and form, which divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from fdpo_fast import Target
from fdpo_fast.loss.eager import denoising_error
from fdpo_fast.noise import draws, normals

SIZES = {"SD1.5": (4, 64, 64), "SDXL": (4, 128, 128), "SD3": (16, 128, 128)}
"""Latents of one image at the model's own resolution; SD3's are Flux's too."""

PAIRS = (1, 4, 16)
DTYPES = ("float32", "bfloat16")

READS = {
    "predictions": ("pred", "ref", "target"),
    "errors": ("pred", "target"),
    "draws": ("pred",),
    "flow": ("pred", "ref", "target"),
    "flow_errors": ("pred", "target"),
}
"""The forms of input, by the tensors of full size that a forward pass must read.

predictions: pred, ref and target are tensors. errors: ref is given by its stored errors, two numbers a pair. draws: so
it is, and the target is given by the draws of its noise, which the kernel makes again. flow, flow_errors: the target is
noise minus latents; of it the latents are read, and the noise is made again. Who has no draws is given the noise as a
tensor and forms the target of both, as trainers of flows do.
"""

FLOWS = ("flow", "flow_errors")
FLOW_SIZES = ("SDXL", "SD3")

PASSES = ("fwd", "bwd", "fwd+bwd", "fwd+bwd/2")
"""fwd: pred needs no gradient. bwd: a fresh forward pass each time, untimed. fwd+bwd/2: with an upstream gradient of
1/2, as gradient accumulation and loss scaling give; a gradient formed ahead, in the forward pass, is of no use then."""


class Case(NamedTuple):
    """One problem and one pass over it."""

    size: str
    pairs: int
    dtype: str
    form: str
    passes: str
    divergence: str = "jensen_shannon"

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @property
    def elements(self) -> int:
        """Of one tensor of full size."""
        return 2 * self.pairs * math.prod(SIZES[self.size])

    @property
    def tensor_bytes(self) -> int:
        return self.elements * getattr(torch, self.dtype).itemsize

    def minimal_bytes(self, device: torch.device) -> int:
        """What must be read and written at least; numbers per sample do not count.

        Forward: what READS names. Backward: pred and target (not where it is drawn), and the gradient is written. Both
        together on the host: pred, ref and target are read once and the gradient is written, since a pair fits the
        cache. On a GPU they are two launches, and each has to read.
        """
        reads = len(READS[self.form])
        backward = len({"pred", "target"} & set(READS[self.form])) + 1
        tensors = {"fwd": reads, "bwd": backward}.get(self.passes, reads + (1 if device.type == "cpu" else backward))
        return tensors * self.tensor_bytes


class Flow(NamedTuple):
    """A target of noise minus latents, by its draws and by the noise that they stand for."""

    drawn: Target
    noise: Tensor
    latents: Tensor


class Inputs(NamedTuple):
    """Arguments of a loss, by their names."""

    pred: Tensor
    ref: Tensor
    target: Tensor | Flow


def cases() -> Iterator[Case]:
    """Predictions in every pass; forward and backward together, which matters, the other forms and divergence too."""
    problems = list(product(SIZES, PAIRS, DTYPES))
    for form, passes in (
        *product(("predictions",), PASSES[:3]),
        *product(("errors", "draws"), ("fwd+bwd",)),
    ):
        for problem in problems:
            yield Case(*problem, form, passes)
    for problem in problems:
        yield Case(*problem, "predictions", "fwd+bwd", "reverse_kl")
    for size, dtype in product(SIZES, DTYPES):
        yield Case(size, 4, dtype, "predictions", "fwd+bwd/2")
    for form, problem in product(FLOWS, product(FLOW_SIZES, PAIRS, DTYPES)):
        yield Case(*problem, form, "fwd+bwd", "reverse_kl")  # that of all trainers of flows


def preserving_cases() -> Iterator[Case]:
    """Where `winner_preserving` is timed beside the loss without it: 16 pairs of SDXL, however they are given."""
    for form, dtype in product(("predictions", "errors", "draws", "flow"), DTYPES):
        yield Case("SDXL", 16, dtype, form, "fwd+bwd")


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """A policy some way from the target and near its reference: log-ratios of about one at a ratio_scale of 2500."""
    generator = torch.Generator(device).manual_seed(0)
    shape, dtype = SIZES[case.size], getattr(torch, case.dtype)
    triples = draws(0, torch.arange(case.pairs, device=device), 0)
    noise = normals(triples, math.prod(shape)).reshape(-1, *shape).repeat(2, 1, 1, 1)

    def near(center: Tensor, distance: float) -> Tensor:
        step = torch.randn(center.shape, generator=generator, device=device)
        return (center.float() + distance * step).to(dtype)

    target, given = (noise, triples) if case.form == "draws" else (noise.to(dtype),) * 2
    if case.form in FLOWS:
        latents = near(torch.zeros_like(noise), 1.0)
        on = torch.tensor([[1.0], [-1.0]], device=device).expand(2, case.pairs).contiguous()
        target, given = noise - latents, Flow(Target(triples, latents, on), noise.to(dtype), latents)
    pred = near(target, 0.3)
    ref = near(pred, 0.01)
    if "ref" not in READS[case.form]:
        ref = denoising_error(ref, target, torch.float64)
    return Inputs(pred.requires_grad_(case.passes != "fwd"), ref, given)
