"""What becomes of updates in 16-bit weights, by a sample: how many are lost, and what rounding adds to the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdpo_fast.ops.constants import STATE_BLOCK
from fdpo_fast.optim import eager, low_byte, sharded
from fdpo_fast.optim.adamw8bit import AdamW8bit
from fdpo_fast.optim.update import Rates

TENSORS, ELEMENTS = 32, 2048
"""How many parameters are looked at, and how many elements of each."""


class _Seen(NamedTuple):
    """A piece of a parameter as it was before a step."""

    group: dict[str, Any]
    parameter: Tensor
    step: int
    piece: slice
    weights: Tensor


class UpdateWatch:
    """Compares weights before and after steps of the optimizer, and with the update that its states say there was.

    It looks at up to 32 parameters of 16 bits, 2,048 elements from the middle of each, and only while `armed`: a few
    small kernels, and no wait. Under ZeRO these are pieces of the rank's own part.
    """

    def __init__(self, optimizer: AdamW8bit) -> None:
        self.armed = False
        """Whether the next step is looked at."""
        self._optimizer = optimizer
        self._before: list[_Seen] = []
        self._sums: Tensor | None = None
        optimizer.register_step_pre_hook(lambda *_: self.look(stepped=False))
        optimizer.register_step_post_hook(lambda *_: self.compare())

    @torch.no_grad()
    def look(self, stepped: bool = True) -> None:
        """Remember what weights are.

        stepped: whether all parameters are about to be stepped, as inside backward; else those with a gradient.
        """
        if not self.armed:
            return
        found = [
            (group, p)
            for group in self._optimizer.param_groups
            for p in group["params"]
            if p.requires_grad and p.dtype != torch.float32 and (stepped or p.grad is not None)
            if p.numel() and not sharded.is_sharded(p)
        ]
        for group, p in found[:: -(-len(found) // TENSORS) or 1]:
            state = self._optimizer.state[p]
            first = p.numel() // 2 // STATE_BLOCK * STATE_BLOCK
            piece = slice(first, min(first + ELEMENTS, p.numel()))
            self._before.append(_Seen(group, p, state.get("step", 0), piece, _weights(p, state, piece).clone()))

    @torch.no_grad()
    def compare(self) -> None:
        """Add up what became of the updates since `look`; of parameters that were not stepped there were none."""
        before, self._before = self._before, []
        for seen in before:
            state = self._optimizer.state[seen.parameter]
            if state.get("step", 0) == seen.step:
                continue
            update = eager.change(Rates.of(seen.group, state["step"]), seen.weights, *_moments(state, seen.piece))
            moved = seen.weights - _weights(seen.parameter, state, seen.piece)
            there = update != 0
            sums = torch.stack([
                there.sum().double(), (there & (moved == 0)).sum().double(),
                (moved - update).double().square().sum(), update.double().square().sum(),
            ])  # fmt: skip
            self._sums = sums if self._sums is None else self._sums + sums.to(self._sums.device)

    def take(self) -> Tensor | None:
        """Return the sums since the last time, [4] float64, for `figures`; None where nothing was looked at."""
        sums, self._sums = self._sums, None
        return sums


def figures(sums: Sequence[float]) -> dict[str, float]:
    """Return the share of updates that were rounded to nothing, and the norm of rounding as a share of the updates'."""
    count, lost, noise, movement = sums
    return {"optimizer/lost": lost / count, "optimizer/noise": (noise / movement) ** 0.5} if count and movement else {}


def _weights(parameter: Tensor, state: dict[str, Any], piece: slice) -> Tensor:
    """Return a piece of a parameter in float32, with its low bytes where it has them."""
    weights = parameter.detach().flatten()[piece]
    if low_byte.NAME in state:
        return low_byte.joined(weights, state[low_byte.NAME].flatten()[piece])
    return weights.float()


def _moments(state: dict[str, Any], piece: slice) -> Iterator[Tensor]:
    """Yield a piece of both moments in float32."""
    blocks = slice(piece.start // STATE_BLOCK, -(-piece.stop // STATE_BLOCK))
    for number, signed in (("1", True), ("2", False)):
        moment = state["state" + number].flatten()[piece]
        coded = moment.dtype == torch.uint8
        yield eager.decode(moment, state["absmax" + number][blocks], signed) if coded else moment
