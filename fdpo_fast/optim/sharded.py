"""Parameters that are split over ranks: DTensors, as `torch.distributed.fsdp.fully_shard` makes them.

A rank steps its own part. States are DTensors that lie like their parameter, so that torch.distributed.checkpoint saves
and loads them; blocks are those of a rank's part, each part with as many absmax as the largest has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from fdpo_fast.optim.checks import blocks_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

LAYOUT = "shards"
"""The name of the state that says how a parameter was split, in words."""
_WHOLE, _REPEATED = "a whole", "repeated"


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Say whether a tensor is a DTensor; without importing what makes them, which takes a second."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def part(tensor: Any) -> Any:
    """Return what lies on this rank of a DTensor, and anything else as it is; to be called without gradients."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def check_placements(parameter: Tensor) -> None:
    """Raise ValueError for a parameter whose parts are not values of it."""
    if is_sharded(parameter) and any(placement.is_partial() for placement in parameter.placements):
        raise ValueError(f"a parameter must be split or repeated over ranks, not summed up of {parameter.placements}")


def check_gradients(parameters: Sequence[Tensor], grads: Sequence[Tensor], numbers: Sequence[int]) -> None:
    """Raise ValueError for a gradient that does not lie over the ranks as its parameter does."""
    for parameter, grad, number in zip(parameters, grads, numbers, strict=True):
        want, got = getattr(parameter, "placements", None), getattr(grad, "placements", None)
        if want != got:
            raise ValueError(f"the gradient of parameter {number} lies as {got or 'a whole'}, the parameter as {want}")


def largest_part(parameter: DTensor) -> int:
    """Count the elements of the largest part that a rank has; a dimension is split as by `torch.chunk`."""
    shape = list(parameter.shape)
    for dimension, ranks in _splits(parameter):
        shape[dimension] = -(-shape[dimension] // ranks)
    return math.prod(shape)


def first_element(parameter: Tensor, together: int) -> int:
    """Return the place of this rank's first element among all, in multiples of `together` that no two parts share.

    It is that in the whole tensor where its first dimension is split and parts are such multiples: then elements have
    the random bits that they have without ranks.
    """
    if not is_sharded(parameter):
        return 0
    place, mesh = 0, parameter.device_mesh
    for axis, placement in enumerate(parameter.placements):
        if _is_split(placement):
            place = place * mesh.size(axis) + mesh.get_local_rank(axis)
    return place * (-(-largest_part(parameter) // together) * together)


def blocks(parameter: Tensor, count: int) -> int:
    """Return the number of absmax that a rank's part of a parameter has, `count` elements."""
    return blocks_of(largest_part(parameter) if is_sharded(parameter) else count)


def zeros_like(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros in a parameter's shape, split over ranks as it is; plain and contiguous on each."""
    if not is_sharded(parameter):
        return torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)
    from torch.distributed.tensor import DTensor

    own = parameter.to_local()
    zeros = torch.zeros(own.shape, dtype=dtype, device=own.device)
    return DTensor.from_local(
        zeros,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def start(state: dict[str, Any], parameter: DTensor, dtype: torch.dtype) -> None:
    """Give a parameter's part the states of nothing seen yet, uint8 codes or float32."""
    from torch.distributed.tensor import DTensor, Shard

    own, mesh = parameter.to_local(), parameter.device_mesh
    state[LAYOUT] = layout(parameter)
    per_rank = blocks_of(largest_part(parameter))
    split = [Shard(0) if _is_split(placement) else placement for placement in parameter.placements]
    for number in ("1", "2"):
        state["state" + number] = zeros_like(parameter, dtype)
        if dtype == torch.uint8:
            zeros = torch.zeros(per_rank, dtype=torch.float32, device=own.device)
            state["absmax" + number] = DTensor.from_local(
                zeros, mesh, split, run_check=False, shape=torch.Size([_ranks(parameter) * per_rank]), stride=(1,)
            )


def saved_blocks(parameter: Tensor) -> int:
    """Return the number of absmax that a parameter's saved 8-bit states have, over all ranks."""
    if not is_sharded(parameter):
        return blocks_of(parameter.numel())
    return _ranks(parameter) * blocks_of(largest_part(parameter))


def check_saved(state: dict[str, Any], parameter: Tensor, names: Sequence[str], number: int) -> None:
    """Raise ValueError where the saved tensors of a state are not split as a parameter is."""
    was, split = state.get(LAYOUT, _WHOLE), [is_sharded(state[name]) for name in names]
    if is_sharded(parameter):
        now, fits = layout(parameter), was == layout(parameter) and all(split)
    else:  # blocks of a part are those of the whole only by chance
        now, fits = _WHOLE, was in (_WHOLE, _REPEATED) and not any(split)
    if not fits:
        raise ValueError(
            f"the saved states of parameter {number} were split as '{was}', it is split as '{now}': their blocks are "
            "those of a rank's part, so resume on as many ranks"
        )


def placed(state: dict[str, Any], parameter: DTensor, names: Sequence[str], copy: bool) -> dict[str, Any]:
    """Return the saved tensors of a parameter's state, which are split as it is; copies of them, where wanted."""
    device = parameter.to_local().device
    return {LAYOUT: state[LAYOUT]} | {name: state[name].detach().to(device, copy=copy) for name in names}


def layout(parameter: DTensor) -> str:
    """Say how a parameter is split, as in "0:4" for its rows over four ranks."""
    return " ".join(f"{dimension}:{ranks}" for dimension, ranks in _splits(parameter)) or _REPEATED


def _splits(parameter: DTensor) -> list[tuple[int, int]]:
    """List the dimensions that are split, each with the number of ranks."""
    placements: Sequence[Any] = parameter.placements
    return [(at.dim, parameter.device_mesh.size(axis)) for axis, at in enumerate(placements) if _is_split(at)]


def _is_split(placement: Any) -> bool:
    """Say whether a placement splits a dimension; that of fully_shard around tensor parallelism is no Shard."""
    return hasattr(placement, "dim")


def _ranks(parameter: DTensor) -> int:
    return math.prod([ranks for _, ranks in _splits(parameter)])
