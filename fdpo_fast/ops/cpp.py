"""The operators on CPU tensors: the C++ code of `csrc`. `missing` says why it is not there, where it is not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fdpo_fast.ops.call import Call
from fdpo_fast.ops.constants import EXP_CAP, STATE_BLOCK, Stat, Stream
from fdpo_fast.ops.results import Results, elements, is_draws
from fdpo_fast.ops.strides import Strides, arrange

DEVICE = "cpu"
NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes it takes, by their number in csrc."""
DTYPES: Collection[torch.dtype] = NUMBERS

_CONSTANTS = {
    "exp_cap": EXP_CAP,
    "state_block": STATE_BLOCK,
    "dtypes": [str(dtype).removeprefix("torch.") for dtype in NUMBERS],
    "streams": [stream.name.lower() for stream in Stream],
    "stats": [stat.name.lower() for stat in Stat],
}

missing: str | None = None
if find_spec("fdpo_fast._native"):
    _native: Any = import_module("fdpo_fast._native")
    if getattr(_native, "constants", dict)() != _CONSTANTS:
        raise ImportError("fdpo_fast's compiled part is of another version than its Python: run `pip install .` again")
    KERNELS = {kernels.name: kernels for kernels in _native.kernels()}
    """Those that this processor runs, the widest first. All give the same bits."""
    active = next(iter(KERNELS.values()))
    _NOTHING = _native.Rows(data=0, dtype=0, row_stride=0)
else:
    missing = "its compiled part (`pip install .` in the source folder builds it with a C++20 compiler)"


def devices() -> tuple[str, ...]:
    """Return the types of device whose tensors it takes."""
    return (DEVICE,)


def loss_forward(pred: Tensor, ref: Tensor, target: Tensor, weight: Tensor | None, call: Call) -> Results:
    """Run `ops.library.loss_forward` in C++."""
    form_grad, predicted, drawn = call.upstream is not None, ref.shape == pred.shape, is_draws(target)
    out = Results.empty(pred, call.reduction, False)
    if form_grad:
        out = out._replace(grad=_gradient_like(pred))
    rows_of = [pred]
    if predicted:
        rows_of.append(ref)
    else:
        ref = ref.double().contiguous()
    if drawn:
        target = target.contiguous()
    else:
        rows_of.append(target)
    if form_grad:
        rows_of.append(out.grad)
    tensors, strides = arrange(rows_of, logical=drawn)
    rows = iter(_rows(tensors, strides))
    pairs = len(pred) // 2
    _native.loss_forward(
        kernels=active,
        threads=torch.get_num_threads(),
        pairs=pairs,
        elements=elements(pred),
        interleaved=call.interleaved,
        pred=next(rows),
        ref=next(rows) if predicted else _NOTHING,
        ref_errors=0 if predicted else ref.data_ptr(),
        target=_NOTHING if drawn else next(rows),
        draws=target.data_ptr() if drawn else 0,
        weight=0 if weight is None else weight.data_ptr(),
        link=call.link,
        loss_type=call.loss_type,
        beta=call.beta,
        ratio_scale=call.ratio_scale,
        share=1 / max(pairs, 1) if call.reduction == "mean" else 1.0,
        reduce=call.reduction != "none",
        upstream=call.upstream if form_grad else 0.0,
        loss=out.loss.data_ptr(),
        accuracy=out.accuracy.data_ptr(),
        stats=out.stats.data_ptr(),
        grad=next(rows) if form_grad else _NOTHING,
    )
    if form_grad and tensors[-1] is not out.grad:
        out.grad.copy_(tensors[-1])
    return out


def loss_backward(grad_loss: Tensor, stats: Tensor, pred: Tensor, target: Tensor, interleaved: bool) -> Tensor:
    """Run `ops.library.loss_backward` in C++."""
    grad, drawn, pairs = _gradient_like(pred), is_draws(target), len(pred) // 2
    target = target.contiguous() if drawn else target
    grad_loss = grad_loss.float().expand(pairs)
    tensors, strides = arrange([pred, grad] if drawn else [pred, grad, target], logical=drawn)
    pred_rows, grad_rows, *target_rows = _rows(tensors, strides)
    _native.loss_backward(
        kernels=active,
        threads=torch.get_num_threads(),
        pairs=pairs,
        elements=elements(pred),
        interleaved=interleaved,
        pred=pred_rows,
        target=_NOTHING if drawn else target_rows[0],
        draws=target.data_ptr() if drawn else 0,
        coefficients=stats[Stat.COEFFICIENT_W :].data_ptr(),
        grad_loss=grad_loss.data_ptr(),
        grad_loss_stride=grad_loss.stride(0),
        grad=grad_rows,
    )
    return grad if tensors[1] is grad else grad.copy_(tensors[1])


def add_noise(
    latents: Tensor, draws: Tensor, signal: Tensor, sigma: Tensor, interleaved: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Run `ops.library.add_noise` in C++."""
    out, timesteps, draws = torch.empty_like(latents, dtype=dtype), draws.new_empty(draws.shape[1]), draws.contiguous()
    tensors, strides = arrange([latents, out], logical=True)
    latent_rows, noisy_rows = _rows(tensors, strides)
    _native.add_noise(
        kernels=active,
        threads=torch.get_num_threads(),
        pairs=len(latents) // 2,
        elements=elements(latents),
        interleaved=interleaved,
        draws=draws.data_ptr(),
        latents=latent_rows,
        signal=signal.data_ptr(),
        sigma=sigma.data_ptr(),
        num_timesteps=len(signal),
        noisy=noisy_rows,
        timesteps=timesteps.data_ptr(),
    )
    return out if tensors[1] is out else out.copy_(tensors[1]), timesteps


def normals(draws: Tensor, count: int) -> Tensor:
    """Run `ops.library.normals` in C++."""
    out, draws = torch.empty(draws.shape[1], count, dtype=torch.float32, device=draws.device), draws.contiguous()
    _native.normals(
        kernels=active,
        threads=torch.get_num_threads(),
        rows=draws.shape[1],
        count=count,
        draws=draws.data_ptr(),
        out=out.data_ptr(),
    )
    return out


def _rows(tensors: Sequence[Tensor], strides: Strides | None) -> list[Any]:
    """Return the native view of each tensor [rows, ...]."""
    if strides is None:
        return [_native.Rows(data=t.data_ptr(), dtype=NUMBERS[t.dtype], row_stride=t.stride(0)) for t in tensors]
    return [
        _native.Rows(
            data=t.data_ptr(), dtype=NUMBERS[t.dtype], row_stride=t.stride(0), sizes=strides.sizes, strides=own
        )
        for t, own in zip(tensors, strides.of, strict=True)
    ]


def _gradient_like(pred: Tensor) -> Tensor:
    """Make room for a gradient: a large one gets its thread's last one's memory, once nobody holds that any longer.

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
    """Count Python's references to the kept storage, as they are seen from here."""
    return sys.getrefcount(_kept.room)


def _held_elsewhere() -> bool:
    """Say whether a tensor has the storage, Python code has its object, or another process may have mapped it."""
    room = _kept.room
    shared = torch._C._storage_Use_Count(room._cdata) > 1 or room.is_shared()
    del room
    return shared or _references() > _OURS


_LARGE = 1 << 20  # bytes
_kept = _Kept()
_OURS = _references()
