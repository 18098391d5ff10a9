"""The optimizer on CPU tensors: one pass over memory in C++ (csrc/step_blocks.cpp), on all torch threads."""

from __future__ import annotations

from functools import cache
from itertools import repeat
from typing import Any

import torch

from fdpo_fast.noise import ROUNDING
from fdpo_fast.ops import cpp
from fdpo_fast.optim.codebook import dynamic_map
from fdpo_fast.optim.update import Clip, Updates


@cache
def _maps() -> Any:
    """Return the C++ side's copy of both maps' tables."""
    tables = [dynamic_map(signed).table.contiguous() for signed in (True, False)]
    return cpp._native.Maps(*(table.data_ptr() for table in tables))


def step(updates: Updates, clip: Clip | None = None) -> None:
    """Step each parameter once, in place; they share the threads."""
    if clip:
        clip.gradients(updates)
    kind, rules = updates.kind, updates.rules
    dtypes = cpp.DTYPES[kind.data], cpp.DTYPES[kind.grad]
    addresses = (column or repeat(0) for column in updates.addresses)
    parameters = [
        cpp._native.Parameter(
            data, dtypes[0], grad, dtypes[1], (m, v), (absmax_m, absmax_v), copy, count,
            rules[rule].stochastic, rules[rule].seed, index, rules[rule].step, ROUNDING, rules[rule].first,
            rules[rule].rates,
        )
        for data, grad, m, v, absmax_m, absmax_v, copy, count, index, rule in zip(
            *addresses, updates.counts, updates.indices, updates.rule_of, strict=False  # some repeat for ever
        )
    ]  # fmt: skip
    cpp._native.adamw8bit(cpp.active, _maps(), parameters, torch.get_num_threads())
