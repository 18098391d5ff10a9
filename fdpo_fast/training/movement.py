"""How far the weights have moved from the reference's, by a sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter

from fdpo_fast.optim.values import local
from fdpo_fast.optim.watch import ELEMENTS, TENSORS


class _Piece(NamedTuple):
    """Elements of a parameter as they were, which stand for `times` as many."""

    parameter: Parameter
    at: slice
    before: Tensor
    times: float


class Movement:
    """The distance |theta - theta_ref| / |theta_ref| of the trained weights, as the model holds them.

    It is made while the weights still are the reference's: of a run that is gone on with, before its checkpoint is
    loaded. It looks at up to 32 parameters, 2,048 elements from the middle of each, which count for as many as the
    parameter has. Under ZeRO-3 these are pieces of the rank's own part.

    Weights of 16 bits are taken as they are, so that what rounding has moved counts too.

    Args:
        module: whose trained parameters are looked at.
        device: where the ranks add up.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        found = [p for p in module.parameters() if p.requires_grad and _held(p).numel()]
        self._pieces = [_piece(p) for p in found[:: -(-len(found) // TENSORS) or 1]]

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Return the distance so far as a record's `movement`. Waits for the device. Collective."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for parameter, at, before, times in self._pieces:
            was = before.double()
            moved = _held(parameter)[at].double() - was
            sums += times * torch.stack([moved.square().sum(), was.square().sum()]).to(self._device)
        dist.all_reduce(sums)
        moved, norm = sums.tolist()
        return {"movement": (moved / norm) ** 0.5} if norm else {}


def _piece(parameter: Parameter) -> _Piece:
    held = _held(parameter)
    first = max(0, held.numel() - ELEMENTS) // 2
    at = slice(first, first + ELEMENTS)
    before = held[at].clone()
    return _Piece(parameter, at, before, held.numel() / before.numel())


def _held(parameter: Parameter) -> Tensor:
    """Return what this rank holds of a parameter, flat: of ZeRO-3's shard without what fills up the last one."""
    held = local(parameter).flatten()
    if not hasattr(parameter, "ds_id"):
        return held
    whole: Any = parameter
    rest: int = whole.ds_numel - dist.get_rank() * held.numel()
    return held[: max(0, rest)]
