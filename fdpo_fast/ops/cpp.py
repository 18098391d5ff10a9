"""The operators on CPU tensors: the C++ code of `csrc`. `missing` says why it is not there, where it is not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from fdpo_fast.loss.divergences import EXP_CAP
from fdpo_fast.ops.results import Results, elements, is_draws
from fdpo_fast.ops.strides import Walk, arrange

missing: str | None = None
if find_spec("fdpo_fast._native"):
    from fdpo_fast import _native

    KERNELS = {kernels.name: kernels for kernels in _native.kernels()}
    """Those that this processor runs, the widest first. All give the same bits."""
    active = next(iter(KERNELS.values()))
    _NOTHING = _native.Rows(0, 0, 0)
else:
    missing = "its compiled part (`pip install .` in the source folder builds it with a C++20 compiler)"

DEVICE = "cpu"
# The order of csrc/kernels.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def devices() -> tuple[str, ...]:
    """Types of device whose tensors it takes."""
    return (DEVICE,)


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
    reduction: str,
    upstream: float | None,
) -> Results:
    """See `ops.library.loss_forward`."""
    form_grad, predicted, drawn = upstream is not None, ref.shape == pred.shape, is_draws(target)
    out = Results.empty(pred, reduction, False)
    if form_grad:
        out = out._replace(grad=_gradient_like(pred))
    tensors = [pred]
    if predicted:
        tensors.append(ref)
    else:
        ref = ref.double().contiguous()
    if drawn:
        target = target.contiguous()
    else:
        tensors.append(target)
    if form_grad:
        tensors.append(out.grad)
    tensors, order = arrange(tensors, logical=drawn)
    rows = iter(_rows(tensors, order))
    pairs = len(pred) // 2
    _native.loss_forward(
        active,
        torch.get_num_threads(),
        pairs,
        elements(pred),
        interleaved,
        next(rows),
        next(rows) if predicted else _NOTHING,
        0 if predicted else ref.data_ptr(),
        _NOTHING if drawn else next(rows),
        target.data_ptr() if drawn else 0,
        0 if weight is None else weight.data_ptr(),
        (*link, EXP_CAP),
        loss_type,
        beta,
        ratio_scale,
        1 / max(pairs, 1) if reduction == "mean" else 1.0,
        reduction != "none",
        out.loss.data_ptr(),
        out.accuracy.data_ptr(),
        out.stats.data_ptr(),
        next(rows) if form_grad else _NOTHING,
        upstream if form_grad else 0.0,
    )
    if form_grad and tensors[-1] is not out.grad:
        out.grad.copy_(tensors[-1])
    return out


def loss_backward(grad_loss: Tensor, stats: Tensor, pred: Tensor, target: Tensor, interleaved: bool) -> Tensor:
    """See `ops.library.loss_backward`."""
    grad, drawn, pairs = _gradient_like(pred), is_draws(target), len(pred) // 2
    target = target.contiguous() if drawn else target
    grad_loss = grad_loss.float().expand(pairs)
    tensors, order = arrange([pred, grad] if drawn else [pred, grad, target], logical=drawn)
    pred_rows, grad_rows, *target_rows = _rows(tensors, order)
    _native.loss_backward(
        active,
        torch.get_num_threads(),
        pairs,
        elements(pred),
        interleaved,
        pred_rows,
        _NOTHING if drawn else target_rows[0],
        target.data_ptr() if drawn else 0,
        stats[-2:].data_ptr(),
        grad_loss.data_ptr(),
        grad_loss.stride(0),
        grad_rows,
    )
    return grad if tensors[1] is grad else grad.copy_(tensors[1])


def add_noise(
    latents: Tensor, draws: Tensor, signal: Tensor, sigma: Tensor, interleaved: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `ops.library.add_noise`."""
    out, timesteps, draws = torch.empty_like(latents, dtype=dtype), draws.new_empty(draws.shape[1]), draws.contiguous()
    tensors, order = arrange([latents, out], logical=True)
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
    return out if tensors[1] is out else out.copy_(tensors[1]), timesteps


def normals(draws: Tensor, count: int) -> Tensor:
    """See `ops.library.normals`."""
    out, draws = torch.empty(draws.shape[1], count), draws.contiguous()
    _native.normals(active, torch.get_num_threads(), draws.shape[1], count, draws.data_ptr(), out.data_ptr())
    return out


def _gradient_like(pred: Tensor) -> Tensor:
    """`torch.empty_like`; a large gradient gets the memory of its thread's last one, once nobody holds that any longer.

    The allocator would give the memory back to the system at every step, and take fresh pages, whose first touches cost
    as much as the loss.
    """
    size = pred.numel() * pred.element_size()
    if size < _LARGE or not pred.is_contiguous():
        return torch.empty_like(pred)
    if _kept.room.nbytes() != size or _held_elsewhere():
        grad = torch.empty_like(pred)
        _kept.room = grad.untyped_storage()
        return grad
    return torch.empty(0, dtype=pred.dtype).set_(_kept.room, 0, pred.shape, pred.stride())


class _Kept(threading.local):
    """The storage of a thread's last large gradient."""

    def __init__(self) -> None:
        self.room = torch.UntypedStorage(0)


def _references() -> int:
    """Of Python to the kept storage, as they are counted here."""
    return sys.getrefcount(_kept.room)


def _held_elsewhere() -> bool:
    """Whether a tensor has the storage, Python code has its object, or another process may have mapped it."""
    room = _kept.room
    shared = torch._C._storage_Use_Count(room._cdata) > 1 or room.is_shared()
    del room
    return shared or _references() > _OURS


_LARGE = 1 << 20  # bytes
_kept = _Kept()
_OURS = _references()


def _rows(tensors: Sequence[Tensor], order: Walk | None) -> list:
    """The native view of each tensor [rows, ...]."""
    if order is None:
        return [_native.Rows(t.data_ptr(), DTYPES[t.dtype], t.stride(0)) for t in tensors]
    return [
        _native.Rows(t.data_ptr(), DTYPES[t.dtype], t.stride(0), order.sizes, strides)
        for t, strides in zip(tensors, order.strides, strict=True)
    ]
