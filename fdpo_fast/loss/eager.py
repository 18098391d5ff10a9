r"""The loss of the paper in plain torch, for any dtype: the eager backend, and what the fused ones are held against.

With p = policy prediction, r = reference prediction, t = target and means over the elements of a sample:

    delta = mean((p - t)^2) - mean((r - t)^2) = mean((p - r) * ((p - t) + (r - t)))
    u     = -ratio_scale * delta              stands for log p_theta / p_ref of the sample
    gap   = h(u_w) - h(u_l)                   h: the link of the divergence
    z     = beta * gap                        the margin
    loss  = -log sigmoid(z)

With a target margin m the loss of a pair is that of gap - m / beta, and with a weight w for the preferred sample's own
denoising loss it is larger by w mean((p_w - t_w)^2). Where log-ratios are clipped h is that of `loss.clipping`; where
the preferred sample's error is preserved, see `loss.preserving`, the gradient of a pair sees besides

    product = mean((p_w - t_w) * (p_l - t_l))

Reverse KL (h(u) = u) with beta * ratio_scale = beta_dpo / 2 is Diffusion-DPO (Wallace et al., arXiv 2311.12908).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Split = Callable[[Tensor], tuple[Tensor, Tensor]]

# torch is imported where it is used: who checks a configuration reads the tables without it.


class Errors(NamedTuple):
    """Per-sample denoising errors and the log-ratio u that they stand for, each [2B]."""

    error: Tensor
    ref_error: Tensor
    log_ratio: Tensor


def denoising_errors(pred: Tensor, ref: Tensor, target: Tensor, ratio_scale: float) -> Errors:
    """Form the mean squared errors of policy and reference against the target; gradients flow to `pred`.

    pred, target: [2B, ...], any floating dtypes. ref: reference predictions of the same shape, or reference errors
    [2B] in float32/float64. Everything is formed in float32 (float64 where an input is) from the first subtraction on.
    With predictions, delta comes from the product form: equal predictions give exactly 0, close ones lose no digits.
    With errors, the last sum and the subtraction are float64.
    """
    import torch

    if ref.shape != pred.shape:
        error = denoising_error(pred, target, torch.float64)
        # float64 sums come back to the dtype of the predictions here: exponentials of u need no more
        return Errors(error, ref, (-ratio_scale * (error - ref)).to(_wide(pred, target)))
    wide = _wide(pred, ref, target)
    pred, ref, target = pred.to(wide), ref.to(wide), target.to(wide)
    miss, ref_miss = pred - target, ref - target
    delta = _mean((pred - ref) * (miss + ref_miss), wide)
    return Errors(
        _mean(miss.square(), wide), _mean(ref_miss.square(), wide), (-ratio_scale * delta).to(_wide(pred, target))
    )


def denoising_error(pred: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """Form each sample's mean squared error, [2B]: squares in float32 (float64 where an input is), sums in `dtype`."""
    wide = _wide(pred, target)
    return _mean((pred.to(wide) - target.to(wide)).square(), dtype)


def product_of_misses(pred: Tensor, target: Tensor, split: Split, dtype: torch.dtype) -> Tensor:
    """Form mean((p_w - t_w)(p_l - t_l)) of each pair, [B], without a gradient, as `denoising_error` forms squares.

    split: of rows [2B, ...] those of the preferred and of the dispreferred samples, see `ops.pairs.LAYOUTS`.
    """
    wide = _wide(pred, target)
    miss_w, miss_l = split(pred.detach().to(wide) - target.to(wide))
    return _mean(miss_w * miss_l, dtype)


def _wide(*tensors: Tensor) -> torch.dtype:
    import torch

    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _mean(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Average over all dimensions but the first."""
    return x.mean(dim=tuple(range(1, x.ndim)), dtype=dtype) if x.ndim > 1 else x.to(dtype)


class LossType(NamedTuple):
    """A loss of the pair as one row, all that a kernel sees of it; with z = beta * gap:

    loss = kept * softplus(-z) + flipped * softplus(z) + hinge * max(0, 1 - z) + square * (gap - 1 / (2 beta))^2

    Every one sees the pair through gap = h(u_w) - h(u_l) alone: only there does the normaliser of f cancel.
    """

    kept: float = 0.0
    flipped: float = 0.0
    hinge: float = 0.0
    square: float = 0.0

    def __call__(self, gap: Tensor, beta: float) -> Tensor:
        """Return the loss of each pair, shape of `gap`."""
        from torch.nn.functional import logsigmoid, relu

        # A term with coefficient zero is left out, not multiplied by zero: 0 * inf is NaN.
        terms = []
        if self.kept:
            terms.append(self.kept * -logsigmoid(beta * gap))
        if self.flipped:
            terms.append(self.flipped * -logsigmoid(-beta * gap))
        if self.hinge:
            terms.append(self.hinge * relu(1 - beta * gap))
        if self.square:
            terms.append(self.square * (gap - 1 / (2 * beta)).square())
        return sum(terms[1:], terms[0])

    def slope(self, gap: Tensor, beta: float) -> Tensor:
        """Return the derivative of the loss of each pair by its gap, shape of `gap`."""
        import torch

        z = beta * gap
        terms = [beta * (self.flipped * torch.sigmoid(z) - self.kept * torch.sigmoid(-z))]
        if self.hinge:
            terms.append(-self.hinge * beta * (z < 1).to(gap.dtype))
        if self.square:
            terms.append(2 * self.square * (gap - 1 / (2 * beta)))
        return sum(terms[1:], terms[0])


# Each as a function of the probability e that a label is wrong.
LOSS_TYPES: dict[str, Callable[[float], LossType]] = {
    # -log sigmoid(z); smoothed: cDPO
    "sigmoid": lambda e: LossType(kept=1 - e, flipped=e),
    # unbiased under labels flipped with probability e (Chowdhury et al., arXiv 2403.00409)
    "robust": lambda e: LossType(kept=(1 - e) / (1 - 2 * e), flipped=-e / (1 - 2 * e)),
    # SLiC, arXiv 2305.10425
    "hinge": lambda e: LossType(hinge=1),
    # Azar et al., arXiv 2310.12036
    "ipo": lambda e: LossType(square=1),
}


class PairLosses(NamedTuple):
    """Margins and losses of B pairs, each [B]."""

    margin: Tensor
    loss: Tensor


def pair_losses(
    log_ratio_w: Tensor,
    log_ratio_l: Tensor,
    link: Callable[[Tensor], Tensor],
    of_pair: LossType,
    beta: float,
    offset: float = 0.0,
) -> PairLosses:
    """Go from log-ratios [B] of the preferred and of the dispreferred samples to one loss per pair.

    The margin is that of the whole gap, beta * gap; the loss sees gap - offset.
    """
    gap = one_for_each(link(log_ratio_w) - link(log_ratio_l), log_ratio_w)
    # older torch.compile calls no tuple
    return PairLosses(beta * gap, LossType.__call__(of_pair, gap - offset if offset else gap, beta))


def one_for_each(value: Tensor, log_ratio: Tensor) -> Tensor:
    """Return a link's value; raise ValueError where it would broadcast against the log-ratios [B] it was formed of."""
    if value.shape != log_ratio.shape:
        raise ValueError(
            f"the divergence must give one number for each log-ratio, {tuple(log_ratio.shape)}, "
            f"got {tuple(value.shape)}"
        )
    return value
