"""Checks of tensors whose addresses the optimizer's backends are told."""

from __future__ import annotations

import torch
from torch import Tensor

from fdpo_fast.ops.constants import STATE_BLOCK


def check_states(
    m: Tensor,
    v: Tensor,
    absmax_m: Tensor | None,
    absmax_v: Tensor | None,
    count: int,
    device: torch.device,
    number: int,
) -> torch.dtype:
    """Return the dtype of a parameter's moments; ValueError for states that do not fit it."""
    if m.numel() != count or m.device != device:
        raise ValueError(
            f"parameter {number} has {count} elements on {device}, its states {m.numel()} on {m.device}: make the "
            "optimizer after moving or resizing"
        )
    states, blocks = [m, v], [absmax_m, absmax_v] if absmax_m is not None and absmax_v is not None else []
    fits = m.dtype == v.dtype == (torch.uint8 if blocks else torch.float32)
    fits = (
        fits and all(t.numel() == count for t in states) and all(t.numel() == -(-count // STATE_BLOCK) for t in blocks)
    )
    fits = fits and all(t.dtype == torch.float32 for t in blocks)
    if not fits or not all(t.device == device and t.is_contiguous() for t in (*states, *blocks)):
        raise ValueError(f"the states of parameter {number} are not those of AdamW8bit: load them by load_state_dict")
    return m.dtype


def copy_at(parameter: Tensor, copy: Tensor | None) -> int:
    """Return the address of a parameter's copy, 0 without one; ValueError for one that does not fit it."""
    if copy is None:
        return 0
    check_copy(parameter, copy)
    return copy.data_ptr()


def check_copy(parameter: Tensor, copy: Tensor) -> None:
    """Raise ValueError for a tensor that a parameter's rounded values cannot be written into."""
    fits = copy.dtype == torch.bfloat16 and copy.shape == parameter.shape and copy.device == parameter.device
    if parameter.dtype != torch.float32 or not fits or not copy.is_contiguous():
        raise ValueError(
            f"a copy must be bfloat16, contiguous and shaped like its float32 parameter, got {copy.dtype} "
            f"{tuple(copy.shape)} on {copy.device} for {parameter.dtype} {tuple(parameter.shape)} on "
            f"{parameter.device}"
        )
