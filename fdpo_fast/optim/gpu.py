"""The optimizer on GPU tensors: one Triton launch for each bucket of parameters of the same kinds."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import torch
from torch import Tensor

from fdpo_fast.ops.gpu import OPTIONS, Lazy, on
from fdpo_fast.optim.dynamic_map import BLOCK, dynamic_map
from fdpo_fast.optim.update import Update

_kernels = Lazy("fdpo_fast.optim.triton_step")

ROWS = 4
"""Blocks of a program: one for each of its warps."""
_OPTIONS = OPTIONS | ({"maxnreg": 160} if "maxnreg" in OPTIONS else {})  # with fewer it spills on sm_100


@cache
def _lines(device: torch.device) -> Tensor:
    """Both maps' tables [2, 6, 8]."""
    return torch.stack([dynamic_map(signed).table for signed in (True, False)]).to(device)


def step(updates: list[Update]) -> None:
    """One step of each parameter, in place."""
    buckets: dict[tuple, list[Update]] = defaultdict(list)
    for update in updates:
        buckets[_kind(update)].append(update)
    for bucket in buckets.values():
        _launch(bucket)


def _tensors(update: Update) -> list[Tensor | None]:
    """In the order of the kernel's table."""
    return [update.data, update.grad, update.m, update.v, update.absmax_m, update.absmax_v, update.copy]


def _aligned(update: Update) -> bool:
    """Whether all can be read by 128 bits."""
    tensors = (update.data, update.grad, update.m, update.v, update.copy)
    return update.data.numel() % 16 == 0 and all(t is None or t.data_ptr() % 16 == 0 for t in tensors)


def _kind(u: Update) -> tuple:
    """What the kernel is compiled for, and the arguments that all of a launch share."""
    rounds = u.stochastic and u.data.dtype != torch.float32
    return u.data.device, u.data.dtype, u.grad.dtype, u.m.dtype, u.copy is None, rounds, _aligned(u), u.seed


def _launch(bucket: list[Update]) -> None:
    like = bucket[0]
    device = like.data.device
    table, ends = [], []
    for u in bucket:
        blocks = -(-u.data.numel() // BLOCK)
        ends.append((ends[-1] if ends else 0) + -(-blocks // ROWS))
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in _tensors(u)]
        table.append([*addresses, u.data.numel(), u.first, u.index, u.step, ends[-1]])
    rates = torch.tensor([u.rates for u in bucket], dtype=torch.float32).to(device, non_blocking=True)
    seed = like.seed - 2**64 if like.seed >> 63 else like.seed
    with on(like.data):
        _kernels.step_kernel[(ends[-1],)](
            torch.tensor(table, dtype=torch.int64).to(device, non_blocking=True),
            rates,
            _lines(device),
            seed,
            len(bucket),
            like.data[:0],  # their dtypes
            like.grad[:0],
            like.m[:0],
            None if like.copy is None else like.copy[:0],
            COPIED=like.copy is not None,
            STOCHASTIC=like.stochastic and like.data.dtype != torch.float32,
            ALIGNED=_aligned(like),
            ROWS=ROWS,
            BLOCK=BLOCK,
            SEARCH=len(bucket).bit_length(),
            **_OPTIONS,
        )
