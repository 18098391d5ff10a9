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


class Values:
    """The values of trained parameters in float32: those of 24 bits, where the optimizer keeps so many.

    Args:
        optimizer: the engine's, ours or ZeRO's around it.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer, self._groups = optimizer, dict[int, int]()

    @property
    def exceed_weights(self) -> bool:
        """Say whether they have more bits than the model's own tensors."""
        own = getattr(self._optimizer, "optimizer", self._optimizer)
        return isinstance(own, AdamW8bit) and any(group["weights"] != "plain" for group in own.param_groups)

    def local(self, parameter: Parameter) -> Tensor:
        """Return the values of what this rank holds of a parameter.

        Collective where there are 24 bits under ZeRO 1 or 2: each rank is asked for its low bytes.
        """
        held = local(parameter)
        low = self._low(parameter) if self.exceed_weights else None
        return held.float() if low is None else low_byte.joined(held, low.to(held.device).view(held.shape))

    def _low(self, parameter: Parameter) -> Tensor | None:
        """Return the low bytes of what this rank holds of a parameter; None where there are none."""
        of = self._optimizer
        if isinstance(of, AdamW8bit):
            return of.state[parameter].get(low_byte.NAME) if parameter in of.state else None
        if hasattr(parameter, "ds_id"):
            group, first, count = of.grad_position[of.get_param_id(parameter)]
            low = of.optimizer.state[of.fp32_partitioned_groups_flat[group]].get(low_byte.NAME)
            return None if low is None else low[first : first + count]
        return self._gathered(parameter)

    def _gathered(self, parameter: Parameter) -> Tensor:
        """Return the low bytes of a parameter, of which each rank has some, or none, in its master of a flat group."""
        zero = self._optimizer
        if not self._groups:
            self._groups = {id(own): number for number, group in enumerate(zero.bit16_groups) for own in group}
        group = self._groups[id(parameter)]
        whole = torch.zeros(parameter.numel(), dtype=torch.int8, device=parameter.device)
        low = zero.optimizer.state[zero.single_partition_of_fp32_groups[group]].get(low_byte.NAME)
        mapping: Any = getattr(parameter, "_hp_mapping", None)  # from where in the parameter to where in the master
        if low is not None and mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            whole[here.start : here.start + here.numel] = low[there.start : there.start + there.numel]
        dist.all_reduce(whole, group=zero.real_dp_process_group[group])  # all others add zeros
        return whole
