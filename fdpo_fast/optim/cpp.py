"""The optimizer on CPU tensors: one pass over memory in C++ (csrc/loops/adamw8bit.cpp), on all torch threads."""

from __future__ import annotations

from typing import Any

import torch

from fdpo_fast.ops import cpp
from fdpo_fast.ops.once import once
from fdpo_fast.optim.codebook import dynamic_map
from fdpo_fast.optim.update import Clip, Updates


@once
def _maps() -> Any:
    """Return the native copy of both dynamic maps."""
    m, v = (dynamic_map(signed).table.contiguous() for signed in (True, False))
    return cpp._native.Maps(m=m.data_ptr(), v=v.data_ptr())


def step(updates: Updates, clip: Clip | None = None) -> None:
    """Step each parameter once, in place; they share the threads."""
    if clip:
        clip.gradients(updates)
    cpp._native.adamw8bit(
        kernels=cpp.active,
        threads=torch.get_num_threads(),
        maps=_maps(),
        dtype=cpp.NUMBERS[updates.kind.data],
        grad_dtype=cpp.NUMBERS[updates.kind.grad],
        **{name: column or () for name, column in updates.addresses._asdict().items()},
        counts=updates.counts,
        indices=updates.indices,
        rule_of=updates.rule_of,
        rules=[cpp._native.Rule(**rule._asdict()) for rule in updates.rules],
    )
