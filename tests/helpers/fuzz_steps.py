"""Random steps of AdamW8bit, by every backend that is here: all must leave the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fdpo_fast import AdamW8bit

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Run(NamedTuple):
    """A parameter's start, its gradients one after the other, and the optimizer's options."""

    start: Tensor
    grads: list[Tensor]
    options: dict


def numbers(draw: np.random.Generator, count: int, dtype: torch.dtype, most: float) -> Tensor:
    """Values of one size, of sizes apart, or some of both; with zeros, and now and then the ends of the dtype."""
    values = draw.standard_normal(count)
    if draw.random() < 0.5:
        values *= 10.0 ** draw.uniform(-12, 0, count)
    values *= 10.0 ** draw.uniform(-30, most)
    values[draw.random(count) < draw.choice([0, 0, 0.3, 1])] = 0
    if draw.random() < 0.1:
        info = torch.finfo(dtype)
        values[draw.integers(count)] = draw.choice([info.max, -info.max, info.tiny, info.smallest_normal / 8, -0.0])
    return torch.from_numpy(values).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)


def run(seed: int, steps: int = 4, least: float = 0.0) -> Run:
    """The run of a seed: dtypes, sizes around blocks and around the least size of 8-bit states, rates, decay.

    least: what is smaller is 0, for the interpreter of Triton, which misreads denormal bfloat16.
    """
    draw = np.random.default_rng(seed)
    dtype, grad_dtype = (DTYPES[draw.integers(3)] for _ in range(2))
    count = int(draw.choice([1, 7, 255, 256, 257, 1000, 4095, 4096, 4097, 5000]))
    options = {
        "lr": float(10.0 ** draw.uniform(-9, 0)),
        "betas": (float(draw.choice([0.0, 0.5, 0.9])), float(draw.choice([0.0, 0.9, 0.999]))),
        "eps": float(draw.choice([1e-8, 1e-15, 1e-3])),
        "weight_decay": float(draw.choice([0.0, 0.01, 0.5])),
        "rounding": str(draw.choice(["stochastic", "nearest"])),
        "seed": int(draw.integers(2**63)),
    }
    if dtype != torch.float16:
        options["weights"] = str(draw.choice(["plain", "bf16+8"]))
    grads = [numbers(draw, count, grad_dtype, draw.uniform(-10, 36)) for _ in range(steps)]
    start = numbers(draw, count, dtype, 2)
    for values in (start, *grads):
        values[values.abs() < least] = 0
    return Run(start, grads, options)


def ends(of: Run, backend: str, device: str = "cpu") -> Iterator[dict[str, Tensor]]:
    """Weights and states behind each step."""
    p = torch.nn.Parameter(of.start.clone().to(device))
    if of.grads[0].dtype != p.dtype:
        p.grad_dtype = of.grads[0].dtype
    optimizer = AdamW8bit([p], backend=backend, **of.options)
    for grad in of.grads:
        p.grad = grad.to(device)
        optimizer.step()
        states = {name: value for name, value in optimizer.state[p].items() if isinstance(value, Tensor)}
        yield {name: value.detach().clone().cpu() for name, value in {"weights": p, **states}.items()}


def differing(of: Run, backend: str, device: str = "cpu") -> list[str]:
    """What a backend leaves otherwise than eager torch, in words; signs of zero and kinds of NaN are one."""
    return [
        f"step {number}: {(got[name] != want[name]).sum()} of {want[name].numel()} in {name}"
        for number, (want, got) in enumerate(zip(ends(of, "eager"), ends(of, backend, device), strict=True))
        for name in want
        if not torch.equal(got[name].double().nan_to_num(nan=1e300), want[name].double().nan_to_num(nan=1e300))
    ]
