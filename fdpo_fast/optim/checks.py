"""Checks of tensors whose addresses the optimizer's backends are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter, eq

import torch
from torch import Tensor
from torch.nn import Parameter

from fdpo_fast.ops.constants import STATE_BLOCK

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of parameters and gradients."""

_PLAIN = {Tensor, Parameter}


def plain(tensors: Iterable[Tensor]) -> bool:
    """Say whether all are tensors of torch's own types, as nearly always."""
    return _PLAIN.issuperset(map(type, tensors))


def own_memory(tensor: object) -> bool:
    """Say whether a tensor's address is that of its elements: not a wrapper's, nor of the meta device."""
    if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
        return False
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def check_parameters(parameters: Sequence[Tensor]) -> None:
    """Raise TypeError for a parameter that cannot be stepped."""
    for parameter in parameters:
        if not own_memory(parameter):
            raise TypeError(
                f"a parameter of type {type(parameter).__name__} on {parameter.device} has no memory of its own to "
                "step: give the optimizer tensors with values, or DTensors"
            )
        check_dtype(parameter)
        if any(stride == 0 and size > 1 for size, stride in zip(parameter.shape, parameter.stride(), strict=True)):
            raise TypeError("a parameter is an expanded view, whose elements share memory: step the tensor behind it")


def check_dtype(parameter: Tensor) -> None:
    """Raise TypeError for a parameter of a dtype that is not stepped."""
    if parameter.dtype not in DTYPES:
        raise TypeError(f"parameters must be float32, bfloat16 or float16, got {parameter.dtype}")


def check_gradients(
    grads: Sequence[Tensor], parameters: Sequence[Tensor], devices: Sequence[torch.device], numbers: Sequence[int]
) -> list[torch.dtype]:
    """Return the dtypes of the gradients of parameters, which lie on `devices`.

    Raises TypeError for one of another dtype, layout or type, ValueError for one of another shape or device.
    """
    dtypes = [grad.dtype for grad in grads]
    fine = plain(grads) and set(dtypes).issubset(DTYPES) and {grad.layout for grad in grads} == {torch.strided}
    fine = fine and len({*map(Tensor.get_device, grads), *map(_index, set(devices))}) == 1
    # a list of shapes would set the garbage collector going
    if fine and all(map(eq, map(_shape, grads), map(_shape, parameters))):
        return dtypes
    for grad, parameter, device, number in zip(grads, parameters, devices, numbers, strict=True):
        if grad.layout != torch.strided or grad.dtype not in DTYPES:
            raise TypeError(f"gradients must be dense float32, bfloat16 or float16, got {grad.dtype}, {grad.layout}")
        if grad.device != device:
            raise ValueError(f"the gradient of parameter {number} is on {grad.device}, the parameter on {device}")
        if grad.shape != parameter.shape:
            raise ValueError(
                f"the gradient of parameter {number} has shape {tuple(grad.shape)}, the parameter "
                f"{tuple(parameter.shape)}: clear gradients before parameters change their shape"
            )
        if not own_memory(grad):
            raise TypeError(
                f"the gradient of parameter {number} is a {type(grad).__name__}, which wraps others: give a plain one"
            )
    return dtypes


_shape = attrgetter("shape")


def _index(device: torch.device) -> int:
    """Return the number of a device as `Tensor.get_device` has it."""
    return -1 if device.index is None else device.index


def check_addresses(addresses: Sequence[int], what: str, numbers: Sequence[int]) -> None:
    """Raise ValueError for a tensor whose memory was given up; `what` names it in the message."""
    if 0 in addresses:
        number = numbers[addresses.index(0)]
        raise ValueError(
            f"{what} {number} has no memory: it was freed, or lies elsewhere as under ZeRO-3 or FSDP; step when it is "
            "back"
        )


def check_states(
    m: Tensor,
    v: Tensor,
    absmax_m: Tensor | None,
    absmax_v: Tensor | None,
    low: Tensor | None,
    count: int,
    blocks: int,
    device: torch.device,
    number: int,
) -> torch.dtype:
    """Return the dtype of the moments, of `count` elements in `blocks`; ValueError where one does not fit."""
    absmax = [t for t in (absmax_m, absmax_v) if t is not None]
    states = [m, v] if low is None else [m, v, low]
    if all(map(own_memory, (*states, *absmax))):
        if m.numel() != count or m.device != device:
            raise ValueError(
                f"parameter {number} has {count} elements on {device}, its states {m.numel()} on {m.device}: make the "
                "optimizer after moving or resizing"
            )
        fits = len(absmax) != 1 and m.dtype == v.dtype == (torch.uint8 if absmax else torch.float32)
        fits = fits and v.numel() == count and all(t.numel() == blocks and t.dtype == torch.float32 for t in absmax)
        fits = fits and (low is None or (low.numel() == count and low.dtype == torch.int8))
        if fits and all(t.device == device and t.is_contiguous() and not t.is_neg() for t in (*states, *absmax)):
            return m.dtype
    raise ValueError(f"the states of parameter {number} are not those of AdamW8bit: load them by load_state_dict")


def blocks_of(count: int) -> int:
    """Return the number of blocks of 8-bit states that `count` elements have."""
    return -(-count // STATE_BLOCK)


def check_copy(parameter: Tensor, copy: Tensor) -> None:
    """Raise ValueError for a tensor that a parameter's rounded values cannot be written into."""
    fits = own_memory(copy) and copy.dtype == torch.bfloat16
    fits = fits and copy.shape == parameter.shape and copy.device == parameter.device
    if parameter.dtype != torch.float32 or not fits or not copy.is_contiguous() or copy.is_neg():
        raise ValueError(
            f"a copy must be bfloat16, contiguous and shaped like its float32 parameter, got {copy.dtype} "
            f"{tuple(copy.shape)} on {copy.device} for {parameter.dtype} {tuple(parameter.shape)} on "
            f"{parameter.device}"
        )


def copy_at(parameter: Tensor, copy: Tensor | None) -> int:
    """Return the address of a parameter's copy, 0 without one; ValueError for one that does not fit it."""
    if copy is None:
        return 0
    check_copy(parameter, copy)
    if not copy.data_ptr() and copy.numel():
        raise ValueError("the memory of a parameter's copy was freed")
    return copy.data_ptr()
