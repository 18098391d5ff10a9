"""The optimizer on CPU tensors: one pass over memory in C++ (csrc/step_blocks.cpp), on all torch threads."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from fdpo_fast.noise import ROUNDING
from fdpo_fast.ops import host
from fdpo_fast.optim.dynamic_map import dynamic_map
from fdpo_fast.optim.update import Update


@cache
def _maps() -> Any:
    """The tables are copied."""
    tables = [dynamic_map(signed).table.contiguous() for signed in (True, False)]
    return host._native.Maps(*(table.data_ptr() for table in tables))


def step(updates: list[Update]) -> None:
    """One step of each parameter, in place; they share the threads."""
    parameters = [
        host._native.Parameter(
            u.data.data_ptr(),
            host.DTYPES[u.data.dtype],
            u.grad.data_ptr(),
            host.DTYPES[u.grad.dtype],
            (u.m.data_ptr(), u.v.data_ptr()),
            (0, 0) if u.absmax_m is None else (u.absmax_m.data_ptr(), u.absmax_v.data_ptr()),
            0 if u.copy is None else u.copy.data_ptr(),
            u.data.numel(),
            u.stochastic,
            u.seed,
            u.index,
            u.step,
            ROUNDING,
            u.first,
            u.rates,
        )
        for u in updates
    ]
    host._native.adamw8bit(host.active, _maps(), parameters, torch.get_num_threads())
