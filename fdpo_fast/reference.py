r"""The loss of the paper in plain torch, for any dtype: the eager backend, and what the fused ones are held against.

With p = policy prediction, r = reference prediction, t = target and means over the elements of a sample:

    delta = mean((p - t)^2) - mean((r - t)^2) = mean((p - r) * ((p - t) + (r - t)))
    u     = -ratio_scale * delta              stands for log p_theta / p_ref of the sample
    gap   = h(u_w) - h(u_l)                   h: the link of the divergence
    z     = beta * gap                        the margin
    loss  = -log sigmoid(z)

Reverse KL (h(u) = u) with beta * ratio_scale = beta_dpo / 2 is Diffusion-DPO (Wallace et al., arXiv 2311.12908).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


class Errors(NamedTuple):
    """Per-sample denoising errors, each [2B], and their difference `delta` = error - ref_error."""

    error: Tensor
    ref_error: Tensor
    delta: Tensor


def denoising_errors(pred: Tensor, ref: Tensor, target: Tensor) -> Errors:
    """Mean squared errors of policy and reference against the target.

    pred, target: [2B, ...], any floating dtypes. ref: reference predictions of the same shape, or reference errors
    [2B] in float32/float64. Everything is formed in float32 (float64 where an input is) from the first subtraction on.
    With predictions, delta comes from the product form: equal predictions give exactly 0, close ones lose no digits.
    With errors, the last sum and the subtraction are float64.
    """
    if ref.shape != pred.shape:
        error = denoising_error(pred, target, torch.float64)
        return Errors(error, ref, error - ref)
    wide = _wide(pred, ref, target)
    pred, ref, target = pred.to(wide), ref.to(wide), target.to(wide)
    miss, ref_miss = pred - target, ref - target
    delta = _mean((pred - ref) * (miss + ref_miss), wide)
    return Errors(_mean(miss.square(), wide), _mean(ref_miss.square(), wide), delta)


def denoising_error(pred: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean squared error per sample, [2B]: squares in float32 (float64 where an input is), summed in `dtype`."""
    wide = _wide(pred, target)
    return _mean((pred.to(wide) - target.to(wide)).square(), dtype)


def _wide(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _mean(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean over all dimensions but the first."""
    return x.mean(dim=tuple(range(1, x.ndim)), dtype=dtype) if x.ndim > 1 else x.to(dtype)


def split_pairs(x: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """(preferred, dispreferred) rows of a batch [2B, ...]."""
    return LAYOUTS[layout](x)


LAYOUTS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "halves": lambda x: (x[: len(x) // 2], x[len(x) // 2 :]),
    "interleaved": lambda x: (x[0::2], x[1::2]),
}


def sigmoid_loss(gap: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """-log sigmoid(z); with label smoothing the labels are wrong with that probability (cDPO)."""
    loss = -logsigmoid(beta * gap)
    if label_smoothing:  # left out, not multiplied by zero: 0 * inf is NaN
        loss = (1 - label_smoothing) * loss - label_smoothing * logsigmoid(-beta * gap)
    return loss


def robust_loss(gap: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Unbiased under labels flipped with probability `label_smoothing` (Chowdhury et al., arXiv 2403.00409)."""
    loss = -logsigmoid(beta * gap)
    if label_smoothing:
        flipped = -logsigmoid(-beta * gap)
        loss = ((1 - label_smoothing) * loss - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return loss


def hinge_loss(gap: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """max(0, 1 - z) (SLiC, arXiv 2305.10425)."""
    return relu(1 - beta * gap)


def ipo_loss(gap: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """(gap - 1 / (2 beta))^2 (Azar et al., arXiv 2310.12036)."""
    return (gap - 1 / (2 * beta)).square()


# All of them see the pair through h(u_w) - h(u_l) alone: only there does the normaliser of f cancel.
LOSS_TYPES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "robust": robust_loss,
}


class PairLosses(NamedTuple):
    """Per-sample errors and log-ratios [2B], per-pair margins and losses [B]."""

    errors: Errors
    log_ratio: Tensor
    margin: Tensor
    loss: Tensor


def pair_losses(
    pred: Tensor,
    ref: Tensor,
    target: Tensor,
    link: Callable[[Tensor], Tensor],
    *,
    beta: float,
    ratio_scale: float,
    loss_type: str,
    label_smoothing: float,
    layout: str,
) -> PairLosses:
    """The chain of the module's docstring, one loss per pair; gradients flow to `pred`."""
    errors = denoising_errors(pred, ref, target)
    # float64 sums come back to the dtype of the predictions here: exponentials of u need no more
    wide = _wide(pred, target)
    log_ratio = (-ratio_scale * errors.delta).to(wide)
    h_w, h_l = split_pairs(link(log_ratio), layout)
    gap = h_w - h_l
    return PairLosses(errors, log_ratio, beta * gap, LOSS_TYPES[loss_type](gap, beta, label_smoothing))
