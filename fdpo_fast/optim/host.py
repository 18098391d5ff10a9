"""The optimizer on CPU tensors: one pass over memory in C++ (csrc/step_blocks.cpp), on all torch threads."""

from __future__ import annotations

from functools import cache
from itertools import repeat
from typing import Any

import torch

from fdpo_fast.noise import ROUNDING
from fdpo_fast.ops import host
from fdpo_fast.optim.dynamic_map import dynamic_map
from fdpo_fast.optim.update import Clip, Updates


@cache
def _maps() -> Any:
    """The tables are copied."""
    tables = [dynamic_map(signed).table.contiguous() for signed in (True, False)]
    return host._native.Maps(*(table.data_ptr() for table in tables))


def step(updates: Updates, clip: Clip | None = None) -> None:
    """One step of each parameter, in place; they share the threads."""
    if clip:
        clip.gradients(updates)
    kind, rules = updates.kind, updates.rules
    dtypes = host.DTYPES[kind.data], host.DTYPES[kind.grad]
    addresses = (column or repeat(0) for column in updates.addresses)
    parameters = [
        host._native.Parameter(
            data, dtypes[0], grad, dtypes[1], (m, v), (absmax_m, absmax_v), copy, count,
            rules[rule].stochastic, rules[rule].seed, index, rules[rule].step, ROUNDING, rules[rule].first,
            rules[rule].rates,
        )
        for data, grad, m, v, absmax_m, absmax_v, copy, count, index, rule in zip(
            *addresses, updates.counts, updates.indices, updates.rule_of, strict=False  # some repeat for ever
        )
    ]  # fmt: skip
    host._native.adamw8bit(host.active, _maps(), parameters, torch.get_num_threads())
