"""The trainer as it is, but for what a measurement at full size must not do: read and write gigabytes.

Here are all the names of the package that are put aside. One that has gone, or that the trainer no longer calls, is an
error: otherwise a benchmark would go on and measure something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from fdpo_fast.memory import needs
from fdpo_fast.models.export import Rounding
from fdpo_fast.models.family import Family
from fdpo_fast.training import trainer
from fdpo_fast.training.checkpoint import Checkpoints
from fdpo_fast.training.metrics import Metrics


@contextmanager
def without_disks(make: Callable[[torch.dtype], nn.Module], after_step: Callable[[int], None]) -> Iterator[None]:
    """Within the block the trainer's weights are made, not read, and neither checkpoints nor an export are written.

    make: the UNet, of a dtype; the same weights every time. after_step: called with each optimizer step's number, as
    soon as its work has been launched. RuntimeError at the end of the block where the trainer did not come by.
    """
    end_step = Metrics.end_step

    def denoiser(family: Family, dtype: torch.dtype, *_: Any, **__: Any) -> nn.Module:
        return make(dtype)

    def closed(metrics: Metrics, step: int, *rest: Any, **more: Any) -> None:
        end_step(metrics, step, *rest, **more)
        after_step(step)

    replaced: list[tuple[Any, str, Any]] = [
        (Family, "denoiser", denoiser),
        (trainer, "export", lambda *_: Rounding(torch.float32, False)),
        (Checkpoints, "save", None),
        (needs, "shortage", None),  # the plan is drawn up beforehand, outside the measured seconds
        (Metrics, "end_step", closed),
    ]
    with ExitStack() as stack:
        mocks = {}
        for owner, name, instead in replaced:
            mock = stack.enter_context(patch.object(owner, name, autospec=True))
            mock.side_effect, mock.return_value = instead, None
            mocks[f"{owner.__name__}.{name}"] = mock
        yield
    if idle := [name for name, mock in mocks.items() if not mock.called]:
        raise RuntimeError(f"the trainer no longer calls {', '.join(idle)}: benchmarks/gpu/patches.py must follow it")
