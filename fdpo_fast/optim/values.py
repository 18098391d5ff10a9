"""Trained weights in float32, as exactly as they are kept: with the low bytes that 24-bit ones have, under any ZeRO."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from fdpo_fast.optim import low_byte
from fdpo_fast.optim.adamw8bit import AdamW8bit


def local(parameter: Parameter) -> Tensor:
    """Return what this rank holds of a parameter: its ZeRO-3 shard, or the whole."""
    return getattr(parameter, "ds_tensor", parameter).detach()


def has_low_bytes(optimizer: Any) -> bool:
    """Say whether an engine's optimizer, ours or ZeRO's around it, keeps weights of 24 bits."""
    own = getattr(optimizer, "optimizer", optimizer)
    return isinstance(own, AdamW8bit) and any(group["weights"] != "plain" for group in own.param_groups)


def value(optimizer: Any, parameter: Parameter) -> Tensor:
    """Return the values of what this rank holds of a parameter, float32.

    optimizer: the engine's. Where it keeps weights of 24 bits under ZeRO 1 or 2 the ranks are asked for theirs of the
    low bytes, which is collective.
    """
    held = local(parameter)
    low = _low(optimizer, parameter) if has_low_bytes(optimizer) else None
    return held.float() if low is None else low_byte.joined(held, low.to(held.device).view(held.shape))


def _low(optimizer: Any, parameter: Parameter) -> Tensor | None:
    """Return the low bytes of what this rank holds of a parameter; None where there are none yet, or it has none."""
    if isinstance(optimizer, AdamW8bit):
        return optimizer.state[parameter].get(low_byte.NAME) if parameter in optimizer.state else None
    if hasattr(parameter, "ds_id"):
        group, first, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
        low = optimizer.optimizer.state[optimizer.fp32_partitioned_groups_flat[group]].get(low_byte.NAME)
        return None if low is None else low[first : first + count]
    return _gathered(optimizer, parameter)


def _gathered(zero: Any, parameter: Parameter) -> Tensor:
    """Return the low bytes of a parameter, of which each rank has some, or none, in its master of a flat group."""
    group = next(number for number, own in enumerate(zero.bit16_groups) if any(p is parameter for p in own))
    whole = torch.zeros(parameter.numel(), dtype=torch.int8, device=parameter.device)
    low = zero.optimizer.state[zero.single_partition_of_fp32_groups[group]].get(low_byte.NAME)
    mapping: Any = getattr(parameter, "_hp_mapping", None)  # from where in the parameter to where in the master
    if low is not None and mapping is not None:
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        whole[here.start : here.start + here.numel] = low[there.start : there.start + there.numel]
    dist.all_reduce(whole, group=zero.real_dp_process_group[group])  # all others add zeros
    return whole
