"""The checks of the tensors that the loss is called on."""

from __future__ import annotations

import torch
from torch import Tensor

from fdpo_fast.ops.library import best, chosen
from fdpo_fast.ops.target import Target

_known: dict[tuple, str] = {}
_MOST_KNOWN = 1024


def backend_for(
    named: str | None, pred: Tensor, ref: Tensor, target: Target, weight: Tensor | None, *, remember: bool
) -> str:
    """Check the tensors of a call, and return the backend to run it with, `named` or the best.

    With `remember`, tensors that agree in all that is looked at with those of an earlier call are not checked again.

    Raises what `fdpo_loss` does, on the first tensor that cannot be used.
    """
    draws, data, on = target
    if not remember or pred is None or ref is None or (draws is None and data is None):
        return _found(named, pred, ref, target, weight)
    key = (
        named,
        best(pred.device.type),
        *(pred.dtype, pred.shape, pred.device, pred.layout),
        *(ref.dtype, ref.shape, ref.device, ref.layout),
        None if draws is None else (draws.dtype, draws.shape, draws.device, draws.layout),
        None if data is None else (data.dtype, data.shape, data.device, data.layout),
        None if on is None else (on.dtype, on.shape, on.device, on.layout),
        None if weight is None else (weight.dtype, weight.shape, weight.device, weight.layout),
    )
    backend = _known.get(key)
    if backend is None:
        backend = _found(named, pred, ref, target, weight)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = backend
    return backend


def _found(named: str | None, pred: Tensor, ref: Tensor, target: Target, weight: Tensor | None) -> str:
    _check(pred, ref, target, weight)
    dtypes = [pred.dtype]
    if ref.shape == pred.shape:
        dtypes.append(ref.dtype)
    if target.data is not None:
        dtypes.append(target.data.dtype)
    return chosen(named, pred.device, *dtypes)


def _check(pred: Tensor, ref: Tensor, target: Target, weight: Tensor | None) -> None:
    """Raise on the first tensor that cannot be used: the errors of `fdpo_loss`."""
    draws, data, on = target
    mixed = draws is not None and data is not None
    if mixed != (on is not None):
        raise ValueError(
            "a Target of draws and data takes on, [2, B], what each is multiplied by, and one of either takes none"
        )
    of_data = "the target's data" if mixed else "target"
    for name, value, needed in (
        *(("pred", pred, True), ("ref", ref, True), (of_data, data, draws is None), ("draws", draws, False)),
        *(("the target's on", on, False), ("weight", weight, False)),
    ):
        if value is None and not needed:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value is draws:
            if value.dtype != torch.int64:
                raise TypeError(f"draws must be int64, as noise.draws makes them, got {value.dtype}")
        elif not value.is_floating_point():
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
    if draws is not None and draws.shape != (3, rows // 2):
        raise ValueError(f"draws have shape {tuple(draws.shape)}: give (3, {rows // 2}), see noise.draws")
    if data is not None and data.shape != shape:
        raise ValueError(f"{of_data} has shape {tuple(data.shape)} but pred has {tuple(shape)}: they must agree")
    if on is not None and on.shape != (2, rows // 2):
        raise ValueError(f"the target's on has shape {tuple(on.shape)}: give (2, {rows // 2}), of noise and of data")
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
