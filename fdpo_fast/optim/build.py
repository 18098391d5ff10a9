"""Optimizers by the name the configuration gives them, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fdpo_fast.config import schema
from fdpo_fast.optim.adamw8bit import AdamW8bit

Parameters = Iterable[Parameter] | Iterable[dict[str, Any]]


def _bitsandbytes(parameters: Parameters, **options: Any) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **options)


def _cpu_adam(parameters: Parameters, **options: Any) -> Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(parameters, adamw_mode=True, **options)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw8bit": AdamW8bit,
    "adamw8bit_bnb": _bitsandbytes,
    "cpu_adam": _cpu_adam,
}


def _options(settings: schema.Optimizer, seed: int) -> dict[str, Any]:
    names = {"lr", "betas", "eps", "weight_decay"}
    if settings.type != "adamw8bit":
        return settings.model_dump(include=names)
    return settings.model_dump(include=names | {"rounding", "weights"}) | {"seed": seed}


def optimizer(settings: schema.Optimizer, parameters: Parameters, seed: int) -> Optimizer:
    """Make the optimizer of the configuration's section over `parameters`, or groups of them.

    seed: of stochastic rounding.
    """
    return OPTIMIZERS[settings.type](parameters, **_options(settings, seed))


# Share of the peak rate after warm-up, by progress in [0, 1].
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def schedule(settings: schema.Optimizer, max_steps: int) -> Callable[[Optimizer], LambdaLR]:
    """Return what makes the schedule: linear warm-up from lr / warmup_steps, then the named decay to `max_steps`.

    The rate is never scaled by the batch.
    """
    warmup, decay = settings.warmup_steps, SCHEDULES[settings.schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return decay(min((step - warmup) / max(max_steps - warmup, 1), 1.0))

    return lambda optimizer: LambdaLR(optimizer, factor)


def reapply(settings: schema.Optimizer, seed: int, optimizer: Any, scheduler: LambdaLR) -> None:
    """Put the configuration's options in place of those that a checkpoint has brought along."""
    scheduler.base_lrs = [settings.lr] * len(scheduler.base_lrs)
    rates: list[float | Tensor] = [settings.lr * factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group.update(_options(settings, seed) | {"initial_lr": settings.lr, "lr": rate})
    scheduler._last_lr = rates
