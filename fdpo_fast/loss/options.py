"""A loss with its options checked and resolved, and the checks of the tensors it is called on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fdpo_fast.loss.checks import check_loss, one_of
from fdpo_fast.loss.divergences import DIVERGENCES, Divergence, divergence
from fdpo_fast.loss.eager import LAYOUTS, LOSS_TYPES, LossType
from fdpo_fast.ops.autograd import Options
from fdpo_fast.ops.library import NAMES, chosen
from fdpo_fast.ops.results import is_draws

Link = str | Divergence | Callable[[Tensor], Tensor]

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda losses: losses.sum() / max(len(losses), 1),  # an empty batch has loss 0, not NaN
    "sum": Tensor.sum,
    "none": lambda losses: losses,
}


class Criterion(NamedTuple):
    """The options of `fdpo_loss`, resolved."""

    link: Callable[[Tensor], Tensor]
    beta: float
    ratio_scale: float
    loss_type: LossType
    layout: str
    reduction: str
    backend: str | None
    fused: Options
    """For the fused operators; for a link that is no row of numbers only its log-ratios are of use."""

    @classmethod
    def checked(
        cls,
        divergence: Link,
        beta: float,
        ratio_scale: float,
        loss_type: str,
        label_smoothing: float,
        layout: str,
        reduction: str,
        backend: str | None,
    ) -> Criterion:
        """Raise on the first option that cannot be used: the errors of `fdpo_loss`."""
        link = _resolve(divergence)
        check_loss(beta, ratio_scale, loss_type, label_smoothing)
        one_of("layout", layout, LAYOUTS)
        one_of("reduction", reduction, REDUCTIONS)
        if backend is not None:
            one_of("backend", backend, NAMES)
        beta, ratio_scale = float(beta), float(ratio_scale)
        row = link.row if isinstance(link, Divergence) else DIVERGENCES["reverse_kl"].row
        shape = LOSS_TYPES[loss_type](label_smoothing)
        fused = Options(row, shape, beta, ratio_scale, layout == "interleaved")
        return cls(link, beta, ratio_scale, shape, layout, reduction, backend, fused)

    def backend_for(self, pred: Tensor, ref: Tensor, target: Tensor) -> str:
        """The backend that runs these tensors; ValueError if the one asked for cannot."""
        dtypes = [pred.dtype]
        if ref.shape == pred.shape:
            dtypes.append(ref.dtype)
        if not is_draws(target):
            dtypes.append(target.dtype)
        return chosen(self.backend, pred.device, *dtypes)


def _resolve(link: Link) -> Callable[[Tensor], Tensor]:
    if isinstance(link, str):
        return divergence(link)
    if not callable(link):
        raise TypeError(f"divergence must be a name, a Divergence or a callable u -> h(u), got {type(link).__name__}")
    return link


def check_tensors(pred: Tensor, ref: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """Raise on the first tensor that cannot be used: the errors of `fdpo_loss`."""
    for name, value in (("pred", pred), ("ref", ref), ("target", target), ("weight", weight)):
        if value is None and name == "weight":
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not value.is_floating_point() and not (name == "target" and is_draws(value)):
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
        if value.layout != torch.strided:
            raise TypeError(f"{name} must be a strided tensor, got layout {value.layout}")
        if value.device != pred.device:
            raise ValueError(f"{name} is on {value.device} but pred is on {pred.device}: move them to one device")
    shape = pred.shape
    rows = shape[0] if shape else 1
    if rows % 2:
        raise ValueError(f"pred must hold pairs, [2B, ...] with an even first dimension, got {tuple(shape)}")
    if rows and not pred.numel():
        raise ValueError(f"pred has samples without elements, shape {tuple(shape)}")
    if is_draws(target):
        if target.shape != (3, rows // 2):
            raise ValueError(f"draws have shape {tuple(target.shape)}: give (3, {rows // 2}), see noise.draws")
    elif target.shape != shape:
        raise ValueError(f"target has shape {tuple(target.shape)} but pred has {tuple(shape)}: they must agree")
    if ref.shape != shape:
        if ref.shape != shape[:1]:
            raise ValueError(
                f"ref has shape {tuple(ref.shape)}: give reference predictions {tuple(shape)} "
                f"or reference errors ({rows},)"
            )
        if ref.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"reference errors must be float32 or float64, got {ref.dtype}: "
                "one rounding step of half precision moves the margin by as much as the signal"
            )
    if weight is not None and weight.shape != (rows // 2,):
        raise ValueError(f"weight has shape {tuple(weight.shape)}: give one factor per pair, ({rows // 2},)")
