"""What is trained, whole and as exactly as it is kept, and its running average, under any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fdpo_fast.config.errors import UserError
from fdpo_fast.optim.values import Values, local
from fdpo_fast.optim.zero import gathered, held_by


class EMA:
    """Exponential moving average in float32 of this rank's part of the trainable parameters, under any ZeRO stage.

    Args:
        module: whose trainable parameters are averaged.
        values: of these parameters; of weights of 24 bits all that the optimizer has of them.
        decay: what is left of an average after a step.
    """

    def __init__(self, module: nn.Module, values: Values, decay: float) -> None:
        self.decay, self._values = decay, values
        # ZeRO-3 adds methods to parameters
        self.live: dict[str, Any] = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: local(parameter).float().clone() for name, parameter in self.live.items()}
        self._split = any(hasattr(parameter, "ds_id") for parameter in self.live.values())

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights, after a step. Collective."""
        for name, parameter in self.live.items():
            self.average[name].lerp_(self._values.local(parameter), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module compute by the averages, in its own dtype, while the context lasts. Collective.

        The weights wait on the CPU, and come back with every bit.
        """
        kept = {}
        with torch.no_grad():
            for name, parameter in self.live.items():
                here = held_by(parameter)
                kept[name] = here.to("cpu", copy=True)
                here.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.live.items():
                    held_by(parameter).copy_(kept[name])

    def whole(self, name: str) -> Tensor:
        """Return the average of a parameter, whole, in float32 and on the CPU. Collective."""
        return _whole(self.live[name], self.average[name])

    def _file(self, folder: Path) -> Path:
        """Return the file of this rank's averages; all share the first one's where each holds parameters whole."""
        return folder / f"ema-rank{dist.get_rank() if self._split else 0:05d}.safetensors"

    def save(self, folder: Path) -> None:
        """Write the averages into a checkpoint."""
        if self._split or dist.get_rank() == 0:
            save_file(self.average, self._file(folder))

    def load(self, folder: Path) -> None:
        """Read the averages from a checkpoint; UserError where an older version's has lost them."""
        if not self._file(folder).is_file():
            raise UserError(f"{folder} has no average: take another checkpoint by --resume-from")
        for name, average in load_file(self._file(folder)).items():
            self.average[name].copy_(average)


def trained(module: nn.Module, values: Values, average: EMA | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of what is trained, or of its average, whole and on the CPU, one after the other.

    In float32 where that is more than the model has: averages, and weights of 24 bits. The values are for rank 0, and
    may be the model's own tensors. Collective: every rank reads to the end.
    """
    exceed = values.exceed_weights
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and average:
            yield name, average.whole(name)
        elif parameter.requires_grad:
            yield name, _whole(parameter, values.local(parameter)) if exceed else gathered(parameter)


def _whole(parameter: Any, held: Tensor) -> Tensor:
    """Return a parameter's values in float32, of which each rank holds its part, whole and on the CPU. Collective."""
    if not hasattr(parameter, "ds_id"):
        return held.cpu()
    shard, rest, total = held_by(parameter), held.clone(), torch.zeros((), dtype=torch.float32, device="cpu")
    kept = shard.clone()
    for _ in range(3):  # what gathers a parameter does so in its dtype: a float32 is the sum of three bfloat16s
        shard.copy_(rest)
        rest -= shard.float()
        total = total + gathered(parameter).float()
    shard.copy_(kept)
    return total
