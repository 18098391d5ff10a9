"""The loss as published scripts write it in torch: what a trainer has without this library, and the rival of ours.

Diffusion-DPO's own script (Wallace et al., arXiv 2311.12908) works in the dtype of its inputs; those of diffusers cast
them to float32 first. Both are for reverse KL. No script has Jensen-Shannon: its expression here is theirs with the
link h(u) = log sigmoid(u) on the log-ratio of each sample. What they log beside the implicit accuracy, means of the
errors, is left out, which flatters them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, mse_loss

DIVERGENCES = ("reverse_kl", "jensen_shannon")


def published_loss(
    pred: Tensor, ref: Tensor, target: Tensor, *, casts: bool = True, **options: str | float
) -> tuple[Tensor, Tensor]:
    """Return the loss and the implicit accuracy of pairs; arguments as for `published_margins`.

    A tie counts one half of a pair in diffusers' scripts, which cast, and nothing in the one that does not.
    """
    margins = published_margins(pred, ref, target, casts=casts, **options)
    loss = -1 * logsigmoid(margins).mean()
    accuracy = (margins > 0).sum().float() / margins.size(0)
    if casts:
        accuracy += 0.5 * (margins == 0).sum().float() / margins.size(0)
    return loss, accuracy


def published_margins(
    pred: Tensor,
    ref: Tensor,
    target: Tensor,
    *,
    divergence: str = "reverse_kl",
    beta: float = 1.0,
    ratio_scale: float,
    casts: bool = True,
) -> Tensor:
    """Return the argument of the last log sigmoid, [B].

    pred, target: [2B, ...], the preferred first. ref: predictions of the same shape, or errors [2B]. divergence: of
    `DIVERGENCES`; beta and ratio_scale are those of `fdpo_loss`. casts: as diffusers' scripts, to float32; float64
    stays.
    """
    (model_w, model_l), (ref_w, ref_l) = (
        (x if x.ndim == 1 else _errors(x, target, casts)).chunk(2) for x in (pred, ref)
    )
    if divergence == "reverse_kl":
        return -(beta * ratio_scale) * ((model_w - model_l) - (ref_w - ref_l))
    log_ratio_w, log_ratio_l = -ratio_scale * (model_w - ref_w), -ratio_scale * (model_l - ref_l)
    return beta * (logsigmoid(log_ratio_w) - logsigmoid(log_ratio_l))


def _errors(x: Tensor, target: Tensor, casts: bool) -> Tensor:
    """Return each sample's mean squared error."""
    samples = list(range(1, x.ndim))
    if casts:
        return mse_loss(_wide(x), _wide(target), reduction="none").mean(dim=samples)
    return (x - target).pow(2).mean(dim=samples)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
