"""The operators on CPU tensors: the C++ code of `csrc`. `missing` says why it is not there, where it is not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from fdpo_fast.ops.call import Call
from fdpo_fast.ops.constants import EXP_CAP, STATE_BLOCK, Stat, Stream
from fdpo_fast.ops.once import once
from fdpo_fast.ops.results import Results
from fdpo_fast.ops.strides import Strides, arrange
from fdpo_fast.ops.target import Target

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
else:
    missing = "its compiled part (`pip install .` in the source folder builds it with a C++20 compiler)"


def devices() -> tuple[str, ...]:
    """Return the types of device whose tensors it takes."""
    return (DEVICE,)


def loss_forward(
    pred: Tensor, ref: Tensor, target: Target, weight: Tensor | None, call: Call, upstream: float | None
) -> Results:
    """Run `ops.library.loss_forward` in C++."""
    predicted = ref.shape == pred.shape
    grad = None if upstream is None else _gradient_like(pred)
    pairs, scalar = pred.shape[0] // 2, _scalar()
    loss = torch.empty_like(scalar) if call.reduction != "none" else scalar.new_empty(pairs)
    out = Results(loss, scalar.new_empty(len(Stat) * pairs + 1), grad)
    batch, (p, r, data, g) = _arranged(pred, ref if predicted else None, target, grad, call.interleaved)
    if r is None:
        r = ref.double().contiguous()
    draws = None if target.draws is None else target.draws.contiguous()
    _native.loss_forward(
        kernels=active,
        threads=torch.get_num_threads(),
        batch=batch,
        objective=_objective(call),
        pred=p.data_ptr(),
        ref=r.data_ptr(),
        draws=_address("draws", draws),
        data=_address("target", data),
        on=_address("on", target.on),
        weight=_address("weight", weight),
        upstream=0.0 if upstream is None else upstream,
        loss=out.loss.data_ptr(),
        stats=out.stats.data_ptr(),
        grad=0 if g is None else g.data_ptr(),
    )
    if grad is not None and g is not None and g is not grad:
        grad.copy_(g)
    return out


def loss_backward(grad_loss: Tensor, coefficients: Tensor, pred: Tensor, target: Target, interleaved: bool) -> Tensor:
    """Run `ops.library.loss_backward` in C++."""
    grad = _gradient_like(pred)
    batch, (p, _, data, g) = _arranged(pred, None, target, grad, interleaved)
    draws = None if target.draws is None else target.draws.contiguous()
    grad_loss, coefficients = grad_loss.float().expand(len(pred) // 2), coefficients.contiguous()
    _native.loss_backward(
        kernels=active,
        threads=torch.get_num_threads(),
        batch=batch,
        pred=p.data_ptr(),
        draws=_address("draws", draws),
        data=_address("target", data),
        on=_address("on", target.on),
        coefficients=coefficients.data_ptr(),
        grad_loss=grad_loss.data_ptr(),
        grad_loss_stride=grad_loss.stride(0),
        grad=g.data_ptr(),
    )
    return grad if g is grad else grad.copy_(g)


def add_noise(
    latents: Tensor,
    draws: Tensor,
    signal: Tensor,
    sigma: Tensor,
    density: Tensor | None,
    interleaved: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Run `ops.library.add_noise` in C++."""
    out, timesteps, draws = torch.empty_like(latents, dtype=dtype), draws.new_empty(draws.shape[1]), draws.contiguous()
    batch, (x, _, _, noisy) = _arranged(latents, None, Target(draws=draws), out, interleaved)
    _native.add_noise(
        kernels=active,
        threads=torch.get_num_threads(),
        batch=batch,
        draws=draws.data_ptr(),
        latents=x.data_ptr(),
        signal=signal.data_ptr(),
        sigma=sigma.data_ptr(),
        density=_address("density", density),
        num_timesteps=len(signal),
        noisy=noisy.data_ptr(),
        timesteps=timesteps.data_ptr(),
    )
    return out if noisy is out else out.copy_(noisy), timesteps


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


def _address(name: str, tensor: Tensor | None) -> int:
    """Return where a tensor lies that may be missing: 0 for none."""
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if not address and tensor.numel():
        raise ValueError(f"{name} has no memory: it was freed")
    return address


@once
def _scalar() -> Tensor:
    """Return a tensor to make others like: quicker than by dtype and device."""
    return torch.empty((), dtype=torch.float32, device=DEVICE)


@lru_cache(maxsize=1024)
def _objective(call: Call) -> Any:
    """Return the native form of a call's numbers."""
    return _native.Objective(
        link=call.link,
        loss_type=call.loss_type,
        beta=call.beta,
        ratio_scale=call.ratio_scale,
        reduce=call.reduction != "none",
        mean=call.reduction == "mean",
        may_undo=call.may_undo,
        sft_weight=call.sft_weight,
        offset=call.offset,
        clip_log_ratio=call.clip_log_ratio,
    )


def _arranged(
    samples: Tensor, ref: Tensor | None, target: Target, out: Tensor | None, interleaved: bool
) -> tuple[Any, Sequence[Any]]:
    """Return the native view of a batch, and its four tensors as they are to be read; None where there is none.

    They are samples, ref, the target's data and out. Noise is drawn by the index of an element.
    """
    given = (samples, ref, target.data, out)
    for tensor in given:
        if tensor is not None and not tensor.is_contiguous():
            break
    else:
        dtypes = (
            samples.dtype,
            None if ref is None else ref.dtype,
            None if target.data is None else target.data.dtype,
            None if out is None else out.dtype,
        )
        return _dense(samples.shape, interleaved, dtypes), given
    taken, strides = arrange([tensor for tensor in given if tensor is not None], logical=target.draws is not None)
    own: Iterable[tuple[int, ...] | None] = repeat(None) if strides is None else strides.of
    layouts = iter([_layout(t.dtype, t.stride(0), strides, of) for t, of in zip(taken, own, strict=False)])
    lying = iter(taken)
    batch = _batch(samples.shape, interleaved, [None if tensor is None else next(layouts) for tensor in given])
    return batch, [None if tensor is None else next(lying) for tensor in given]


@lru_cache(maxsize=1024)
def _dense(shape: torch.Size, interleaved: bool, dtypes: tuple[torch.dtype | None, ...]) -> Any:
    """Return the native view of a batch in which the elements of every tensor lie behind one another."""
    n = shape[1:].numel()
    return _batch(shape, interleaved, [None if dtype is None else _layout(dtype, n, None, None) for dtype in dtypes])


def _layout(dtype: torch.dtype, row_stride: int, strides: Strides | None, own: tuple[int, ...] | None) -> Any:
    if strides is None:
        return _native.Layout(dtype=NUMBERS[dtype], row_stride=row_stride)
    return _native.Layout(dtype=NUMBERS[dtype], row_stride=row_stride, sizes=strides.sizes, strides=own)


def _batch(shape: torch.Size, interleaved: bool, layouts: Sequence[Any]) -> Any:
    samples, ref, data, out = layouts
    return _native.Batch(
        pairs=shape[0] // 2,
        elements=shape[1:].numel(),
        interleaved=interleaved,
        samples=samples,
        ref=ref,
        data=data,
        out=out or samples,
    )


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
    return torch.empty(0, dtype=pred.dtype, device=DEVICE).set_(_kept.room, 0, pred.shape, pred.stride())


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
