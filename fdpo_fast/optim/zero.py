"""ZeRO with less memory: weights split before they are moved, and bf16 masters without the buffers that repeat them.

DeepSpeed keeps, besides a master, the weights that it was made from and, under offload, a buffer between the two: three
copies once all are bf16 and on the host.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn
from torch.nn import Parameter

from fdpo_fast.config.errors import UserError
from fdpo_fast.optim.adamw8bit import AdamW8bit
from fdpo_fast.optim.update import WEIGHTS
from fdpo_fast.optim.values import local

GROUP = 100_000_000
"""The most elements of a group of parameters, but for one that is larger by itself."""


def grouped(parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
    """Return parameters in groups of an optimizer, in their order, of `GROUP` elements at most.

    ZeRO stages 1 and 2 flatten a group beside its parameters, and copy its flat weights on the GPU before they move to
    the host: of one group, as large as the model, there would be twice the weights on the GPU before the first step.
    """
    groups: list[dict[str, Any]] = []
    room = 0
    for parameter in parameters:
        if parameter.numel() > room:
            groups.append({"params": []})
            room = GROUP
        groups[-1]["params"].append(parameter)
        room -= parameter.numel()
    return groups


def split(module: nn.Module, settings: dict[str, Any], device: torch.device) -> None:
    """Give each rank its part of a module that lies on the host, as ZeRO stage 3 under the DeepSpeed `settings` does.

    One parameter at a time is on the device. `deepspeed.initialize` would move the whole module there first, and do
    the same then. Parameters stay the objects that they are. Collective.
    """
    dtype = next(module.parameters()).dtype
    for parameter in module.parameters():  # an adapter's may be wider
        parameter.data = parameter.data.to(dtype)
    deepspeed.zero.Init(module=module, config_dict_or_path=settings)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


@contextmanager
def bf16_masters(wanted: bool) -> Iterator[None]:
    """Within the block DeepSpeed makes bf16 masters, where `wanted`, for AdamW8bit as well as for its own CPU Adam.

    Raises UserError where they are wanted of a DeepSpeed that cannot make them.
    """
    if not wanted:
        yield
        return
    configure = getattr(ZeROOptimizer, "_configure_master_weights", None)
    if configure is None:
        raise UserError(
            f"deepspeed.bf16.bf16_master_weights_and_grads needs DeepSpeed >= 0.18.3, not {deepspeed.__version__}: "
            "install another, or leave it out"
        )

    def allowing(self: ZeROOptimizer, **options: Any) -> torch.dtype:
        if isinstance(self.optimizer, AdamW8bit):  # releases differ in the name of what refuses it
            options |= {name: None for name in options if name.startswith("bf16") and name.endswith("_validator")}
        return configure(self, **options)

    ZeROOptimizer._configure_master_weights = allowing
    try:
        yield
    finally:
        ZeROOptimizer._configure_master_weights = configure


def share(zero: Any) -> None:
    """Make the bf16 masters of a fresh ZeRO optimizer one with what repeats them; any other optimizer stays as it is.

    A later copy between the two is then one onto itself. With a DeepSpeed whose names differ there is a warning, and
    nothing else changes.
    """
    if getattr(zero, "master_weights_and_grads_dtype", None) != torch.bfloat16:
        return
    try:
        masters = _share_stage_3(zero) if hasattr(zero, "fp32_partitioned_groups_flat") else _share_stages_1_and_2(zero)
    except AttributeError as error:
        warnings.warn(f"this DeepSpeed keeps its buffers elsewhere, so some exist twice: {error}", stacklevel=2)
        return
    if isinstance(zero.optimizer, AdamW8bit):
        _number_elements(zero.optimizer, masters)


def _share_stages_1_and_2(zero: Any) -> list[Tensor]:
    masters = zero.single_partition_of_fp32_groups
    for number, master in enumerate(masters):
        rank = dist.get_rank(zero.real_dp_process_group[number])
        _alias(master, zero.parallel_partitioned_bit16_groups[number][rank])
        if zero.cpu_offload:
            zero.param_buffer_of_bit16_for_cpu_offload_groups[number] = master.detach()
    zero._link_all_hp_params()  # it holds views of what the masters were
    return masters


def _share_stage_3(zero: Any) -> list[Tensor]:
    masters = zero.fp32_partitioned_groups_flat
    if zero.swap_optimizer:  # on disk
        return masters
    first = 0
    for master, weights in zip(masters, zero.fp16_partitioned_groups_flat, strict=True):
        _alias(master, weights)
        if zero.offload_optimizer:  # accumulated in one, read from the other
            _alias(master.grad, zero.grad_partitions_flat_buffer[first : first + master.numel()])
        first += master.numel()
    return masters


def _alias(tensor: Tensor, other: Tensor) -> None:
    """Give a tensor the memory of another that has its values, where they are alike."""
    if other.dtype == tensor.dtype and other.device == tensor.device and other.shape == tensor.shape:
        tensor.data = other.detach()


def _number_elements(optimizer: AdamW8bit, masters: list[Tensor]) -> None:
    """Give each element its own random bits: ZeRO steps one master at a time, as if it were the only one."""
    together = max(WEIGHTS[group["weights"]] for group in optimizer.param_groups)
    sizes = [-(-master.numel() // together) * together for master in masters]
    first, first_of = dist.get_rank() * sum(sizes), {}
    for master, size in zip(masters, sizes, strict=True):
        first_of[master] = first
        first += size

    def set_first(optimizer: AdamW8bit, *_: Any) -> None:
        for group in optimizer.param_groups:
            for master in group["params"]:  # one at most
                group["first_element"] = first_of[master]

    optimizer.register_step_pre_hook(set_first)


def held_by(parameter: Any) -> Tensor:
    """Return what this rank holds of a parameter, which its module computes by from now on."""
    if getattr(parameter, "ds_status", None) is ZeroParamStatus.AVAILABLE:
        parameter.partition()  # ZeRO-3 keeps small parameters whole: that copy would hide the shard
    return local(parameter)


def gathered(parameter: Parameter) -> Tensor:
    """Return a parameter on the CPU, whole; not copied where it is that already. Collective."""
    sharded = hasattr(parameter, "ds_id")
    with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
        return parameter.detach().to("cpu", copy=sharded)
