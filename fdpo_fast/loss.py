"""The drop-in: `fdpo_loss` and its module form `FDPOLoss`."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from fdpo_fast.divergences import Divergence, divergence
from fdpo_fast.reference import LAYOUTS, LOSS_TYPES, PairLosses, pair_losses, split_pairs

Link = str | Divergence | Callable[[Tensor], Tensor]

BACKENDS = ("eager",)

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda losses: losses.sum() / max(len(losses), 1),  # an empty batch has loss 0, not NaN
    "sum": Tensor.sum,
    "none": lambda losses: losses,
}

# Losses of other trainers that look at each image by itself.
_POINTWISE = ("kto", "bco_pair", "sppo_hard", "nca_pair", "apo_zero", "apo_down", "aot", "exo_pair", "discopop")


class LossStats(dict[str, Tensor]):
    """A dict whose keys also read as attributes: `stats["margin"]` is `stats.margin`.

    Detached float32 tensors. Per pair, [B]: error_w, error_l, ref_error_w, ref_error_l (means of squares),
    log_ratio_w, log_ratio_l, margin, clipped (how many of the two log-ratios lie past the exponential's cap).
    Scalar: accuracy, the share of pairs with a positive margin, a tie counting one half.
    """

    def __getattr__(self, key: str) -> Tensor:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


def fdpo_loss(
    pred: Tensor,
    ref: Tensor,
    target: Tensor,
    *,
    divergence: Link = "jensen_shannon",
    beta: float,
    ratio_scale: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    layout: str = "halves",
    weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> tuple[Tensor, LossStats]:
    """Preference loss of B pairs of denoising predictions under an f-divergence (arXiv 2409.09774).

    Args:
        pred: policy predictions [2B, ...], float16/bfloat16/float32/float64. The only input that gets a gradient.
        ref: reference predictions of the same shape, or reference errors (means of squares) [2B] in float32/float64.
        target: what a perfect model would predict (noise, velocity or flow) [2B, ...]. Both sides of a pair share one
            timestep and one noise.
        divergence: a name of `DIVERGENCES`, a `Divergence` such as `alpha(0.3)`, or any callable u -> h(u) = f'(e^u).
        beta: strength of the regularisation, outside f'; > 0.
        ratio_scale: log-ratio per unit of error difference, inside f'; > 0. Reverse KL with
            `beta * ratio_scale = beta_dpo / 2` is Diffusion-DPO.
        loss_type: "sigmoid", "hinge", "ipo" or "robust".
        label_smoothing: probability in [0, 0.5) that a label is wrong; for "sigmoid" (cDPO) and "robust".
        layout: "halves" = [w...; l...] or "interleaved" = [w, l, w, l, ...].
        weight: per-pair factors [B] on the losses; "mean" still divides by B.
        reduction: "mean", "sum" or "none".
        backend: "eager", or None for the best one available.

    Returns:
        The loss (float32, or float64 for float64 predictions) and its `LossStats`.

    Raises:
        TypeError: a tensor that is not floating point, reference errors in half precision, a divergence of no usable
            type.
        ValueError: an odd batch, shapes or devices that differ, an unknown name, a number out of range.
    """
    link = _check_options(divergence, beta, ratio_scale, loss_type, label_smoothing, layout, reduction, backend)
    _check_tensors(pred, ref, target, weight)
    result = pair_losses(
        pred,
        ref.detach(),
        target.detach(),
        link,
        beta=beta,
        ratio_scale=ratio_scale,
        loss_type=loss_type,
        label_smoothing=label_smoothing,
        layout=layout,
    )
    losses = result.loss if weight is None else result.loss * weight.to(result.loss.dtype)
    return _REDUCTIONS[reduction](losses), _stats(result, link, layout)


class FDPOLoss(nn.Module):
    """`fdpo_loss` with its options bound: `FDPOLoss(beta=..., ratio_scale=...)(pred, ref, target, weight=None)`.

    Options and errors are those of `fdpo_loss`; a bad option raises here, before the first batch.
    """

    def __init__(
        self,
        divergence: Link = "jensen_shannon",
        *,
        beta: float,
        ratio_scale: float,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        layout: str = "halves",
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "divergence": divergence,
            "beta": beta,
            "ratio_scale": ratio_scale,
            "loss_type": loss_type,
            "label_smoothing": label_smoothing,
            "layout": layout,
            "reduction": reduction,
            "backend": backend,
        }
        _check_options(**self.options)

    def forward(
        self, pred: Tensor, ref: Tensor, target: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, LossStats]:
        return fdpo_loss(pred, ref, target, weight=weight, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def _stats(result: PairLosses, link: Callable[[Tensor], Tensor], layout: str) -> LossStats:
    with torch.no_grad():
        stats = LossStats()
        per_sample = (result.errors.error, result.errors.ref_error, result.log_ratio)
        for name, values in zip(("error", "ref_error", "log_ratio"), per_sample, strict=True):
            for side, half in zip("wl", split_pairs(values.detach().float(), layout), strict=True):
                stats[f"{name}_{side}"] = half
        margin = result.margin.detach()
        stats["margin"] = margin.float()
        clipped_w, clipped_l = split_pairs(_clipped(link, result.log_ratio), layout)
        stats["clipped"] = clipped_w.float() + clipped_l.float()
        stats["accuracy"] = ((margin > 0).float() + 0.5 * (margin == 0).float()).sum() / max(len(margin), 1)
        return stats


def _clipped(link: Callable[[Tensor], Tensor], log_ratio: Tensor) -> Tensor:
    """A callable of the user's has no cap that we could count."""
    return link.clipped(log_ratio) if isinstance(link, Divergence) else torch.zeros_like(log_ratio, dtype=torch.bool)


def _one_of(kind: str, value: str | None, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {kind} {value!r}: use one of {', '.join(known)}")


def _check_options(
    divergence: Link,
    beta: float,
    ratio_scale: float,
    loss_type: str,
    label_smoothing: float,
    layout: str,
    reduction: str,
    backend: str | None,
) -> Callable[[Tensor], Tensor]:
    """Raise on the first option that cannot be used; return the link."""
    link = _resolve(divergence)
    for name, value in (("beta", beta), ("ratio_scale", ratio_scale), ("label_smoothing", label_smoothing)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    for name, value in (("beta", beta), ("ratio_scale", ratio_scale)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if loss_type in _POINTWISE:
        raise ValueError(
            f"loss_type '{loss_type}' uses more than the difference h(u_w) - h(u_l), and only there does the "
            f"normaliser of an f-divergence cancel: use one of {', '.join(LOSS_TYPES)}"
        )
    _one_of("loss_type", loss_type, tuple(LOSS_TYPES))
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    if label_smoothing and loss_type not in ("sigmoid", "robust"):
        raise ValueError(f"label_smoothing has no meaning for loss_type '{loss_type}': use 'sigmoid' or 'robust'")
    _one_of("layout", layout, tuple(LAYOUTS))
    _one_of("reduction", reduction, tuple(_REDUCTIONS))
    if backend is not None:
        _one_of("backend", backend, BACKENDS)
    return link


def _resolve(link: Link) -> Callable[[Tensor], Tensor]:
    if isinstance(link, str):
        return divergence(link)
    if not callable(link):
        raise TypeError(f"divergence must be a name, a Divergence or a callable u -> h(u), got {type(link).__name__}")
    return link


def _check_tensors(pred: Tensor, ref: Tensor, target: Tensor, weight: Tensor | None) -> None:
    for name, value in (("pred", pred), ("ref", ref), ("target", target), ("weight", weight)):
        if value is None and name == "weight":
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
        if value.device != pred.device:
            raise ValueError(f"{name} is on {value.device} but pred is on {pred.device}: move them to one device")
    if pred.ndim == 0 or len(pred) % 2:
        raise ValueError(f"pred must hold pairs, [2B, ...] with an even first dimension, got {tuple(pred.shape)}")
    if len(pred) and not pred.numel():
        raise ValueError(f"pred has samples without elements, shape {tuple(pred.shape)}")
    if target.shape != pred.shape:
        raise ValueError(f"target has shape {tuple(target.shape)} but pred has {tuple(pred.shape)}: they must agree")
    if ref.shape != pred.shape and ref.shape != pred.shape[:1]:
        raise ValueError(
            f"ref has shape {tuple(ref.shape)}: give reference predictions {tuple(pred.shape)} "
            f"or reference errors ({len(pred)},)"
        )
    if ref.shape != pred.shape and ref.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"reference errors must be float32 or float64, got {ref.dtype}: "
            "one rounding step of half precision moves the margin by as much as the signal"
        )
    if weight is not None and weight.shape != (len(pred) // 2,):
        raise ValueError(f"weight has shape {tuple(weight.shape)}: give one factor per pair, ({len(pred) // 2},)")
