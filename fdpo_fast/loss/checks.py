"""The checks of the tensors that the loss is called on."""

from __future__ import annotations

import torch
from torch import Tensor

from fdpo_fast.ops.library import best, chosen
from fdpo_fast.ops.results import is_draws

_known: dict[tuple, str] = {}
_MOST_KNOWN = 1024


def backend_for(
    named: str | None, pred: Tensor, ref: Tensor, target: Tensor, weight: Tensor | None, *, remember: bool
) -> str:
    """Check the tensors of a call, and return the backend to run it with, `named` or the best.

    With `remember`, tensors that agree in all that is looked at with those of an earlier call are not checked again.

    Raises what `fdpo_loss` does, on the first tensor that cannot be used.
    """
    if not remember or pred is None or ref is None or target is None:
        return _found(named, pred, ref, target, weight)
    key = (
        named,
        best(pred.device.type),
        *(pred.dtype, pred.shape, pred.device, pred.layout),
        *(ref.dtype, ref.shape, ref.device, ref.layout),
        *(target.dtype, target.shape, target.device, target.layout),
        None if weight is None else (weight.dtype, weight.shape, weight.device, weight.layout),
    )
    backend = _known.get(key)
    if backend is None:
        backend = _found(named, pred, ref, target, weight)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = backend
    return backend


def _found(named: str | None, pred: Tensor, ref: Tensor, target: Tensor, weight: Tensor | None) -> str:
    _check(pred, ref, target, weight)
    dtypes = [pred.dtype]
    if ref.shape == pred.shape:
        dtypes.append(ref.dtype)
    if not is_draws(target):
        dtypes.append(target.dtype)
    return chosen(named, pred.device, *dtypes)


def _check(pred: Tensor, ref: Tensor, target: Tensor, weight: Tensor | None) -> None:
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
