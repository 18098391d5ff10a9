"""The operators on CPU tensors: the C++ code of `csrc`. `missing` says why it is not there, where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from fdpo_fast.divergences import EXP_CAP
from fdpo_fast.ops.layout import Walk, walked
from fdpo_fast.ops.operands import Results, elements, is_draws

missing: str | None = None
if find_spec("fdpo_fast._native"):
    from fdpo_fast import _native

    KERNELS = {kernels.name: kernels for kernels in _native.kernels()}
    """Those that this processor runs, the widest first. All give the same bits."""
    active = next(iter(KERNELS.values()))
    _NOTHING = _native.Rows(0, 0, 0, (1, 1, 0), (0, 0, 1))
else:
    missing = "its compiled part (`pip install .` in the source folder builds it with a C++20 compiler)"

# The order of csrc/kernels.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def devices() -> tuple[str, ...]:
    """Types of device whose tensors it takes."""
    return ("cpu",)


def loss_forward(
    pred: Tensor,
    ref: Tensor,
    target: Tensor,
    weight: Tensor | None,
    link: Sequence[float],
    loss_type: Sequence[float],
    beta: float,
    ratio_scale: float,
    interleaved: bool,
    mean: bool,
    form_grad: bool,
) -> Results:
    """See `ops.operators.loss_forward`."""
    out, predicted, drawn = Results.empty(pred, form_grad), ref.shape == pred.shape, is_draws(target)
    inputs = [pred, *([ref] if predicted else []), *([] if drawn else [target])]
    errors = None if predicted else ref.double().contiguous()
    with walked(inputs, out.grad if form_grad else None, logical=drawn) as (tensors, order):
        rows = iter(_rows(tensors, order))
        _native.loss_forward(
            active,
            torch.get_num_threads(),
            len(pred) // 2,
            elements(pred),
            interleaved,
            next(rows),
            next(rows) if predicted else _NOTHING,
            0 if predicted else errors.data_ptr(),
            _NOTHING if drawn else next(rows),
            target.data_ptr() if drawn else 0,
            0 if weight is None else weight.data_ptr(),
            (*link, EXP_CAP),
            loss_type,
            beta,
            ratio_scale,
            1 / max(len(pred) // 2, 1) if mean else 1.0,
            out.losses.data_ptr(),
            out.loss.data_ptr(),
            out.accuracy.data_ptr(),
            out.stats.data_ptr(),
            out.coefficient.data_ptr(),
            next(rows) if form_grad else _NOTHING,
        )
    return out


def loss_backward(
    grad_loss: Tensor,
    coefficient: Tensor,
    pred: Tensor,
    target: Tensor,
    interleaved: bool,
) -> Tensor:
    """See `ops.operators.loss_backward`."""
    grad = torch.empty_like(pred)
    grad_loss, drawn = grad_loss.float().expand(len(pred) // 2), is_draws(target)
    with walked([pred, *([] if drawn else [target])], grad, logical=drawn) as (tensors, order):
        pred_rows, *target_rows, grad_rows = _rows(tensors, order)
        _native.loss_backward(
            active,
            torch.get_num_threads(),
            len(pred) // 2,
            elements(pred),
            interleaved,
            pred_rows,
            _NOTHING if drawn else target_rows[0],
            target.data_ptr() if drawn else 0,
            coefficient.data_ptr(),
            grad_loss.data_ptr(),
            grad_loss.stride(0),
            grad_rows,
        )
    return grad


def add_noise(
    latents: Tensor, draws: Tensor, signal: Tensor, sigma: Tensor, interleaved: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `ops.operators.add_noise`."""
    out, timesteps = torch.empty_like(latents, dtype=dtype), draws.new_empty(draws.shape[1])
    with walked([latents], out, logical=True) as (tensors, order):
        x_rows, out_rows = _rows(tensors, order)
        _native.add_noise(
            active,
            torch.get_num_threads(),
            len(latents) // 2,
            elements(latents),
            interleaved,
            draws.data_ptr(),
            x_rows,
            signal.data_ptr(),
            sigma.data_ptr(),
            len(signal),
            out_rows,
            timesteps.data_ptr(),
        )
    return out, timesteps


def normals(draws: Tensor, count: int) -> Tensor:
    """See `ops.operators.normals`."""
    out = torch.empty(draws.shape[1], count)
    _native.normals(active, torch.get_num_threads(), draws.shape[1], count, draws.data_ptr(), out.data_ptr())
    return out


def _rows(tensors: Sequence[Tensor], order: Walk) -> list:
    """The native view of each tensor [rows, ...]."""
    return [
        _native.Rows(tensor.data_ptr(), DTYPES[tensor.dtype], tensor.stride(0), order.sizes, strides)
        for tensor, strides in zip(tensors, order.strides, strict=True)
    ]

