"""24-bit weights: a bfloat16 with a signed byte below it, as `weights="bf16+8"` of the optimizer keeps them.

With h the 16 bits of the bfloat16 and l the byte, both integers, the 24 bits h 2^8 + l are the upper ones of a float32:
sign, exponent and 15 bits behind the leading one, where bfloat16 has 7. The byte is that which makes the bfloat16 the
nearest one to the whole,

    h = (bits24 + 128) >> 8,    l = bits24 - 2^8 h  in [-128, 127],

so a model computes with the same bfloat16 weights as without it. A tie lies at l = -128: it is rounded away from zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import contains
from typing import Any

import torch
from torch import Tensor

from fdpo_fast.optim import sharded

NAME = "low"
"""The name of the low byte among a parameter's states."""

_QUIET = 0x7FC00000  # the NaN that torch makes of any in bfloat16


def joined(weights: Tensor, low: Tensor) -> Tensor:
    """Return the 24-bit values, in float32, of bfloat16 weights and their low bytes (int8, of the same shape).

    Where the two make no number, the bfloat16 is meant alone: it was set by somebody else since, to 0 or infinity.
    """
    alone = weights.float()
    both = (alone.view(torch.int32) + (low.int() << 8)).view(torch.float32)
    return torch.where(both.isnan(), alone, both)


def split(values: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Round float32 values to 24 bits, and return them as bfloat16 weights and low bytes, int8.

    bits: 8 random ones each, int32, by which a value becomes one of its two neighbours, the nearer one the more
    probably; None rounds to nearest, ties to even. Infinities and NaN have a low byte of 0.
    """
    whole = values.view(torch.int32)
    moved = whole + (0x7F + ((whole >> 8) & 1) if bits is None else bits)
    moved = torch.where(values.isnan(), _QUIET, moved)
    low = (moved >> 8).to(torch.int8)  # its bits: what is above them does not fit and is dropped
    return (moved + 0x8000 & -0x10000).view(torch.float32).bfloat16(), low


def check(parameter: Tensor, wanted: bool) -> None:
    """Raise TypeError for a float16 parameter of which 24 bits are wanted."""
    if wanted and parameter.dtype == torch.float16:
        raise TypeError("weights 'bf16+8' add a byte to bfloat16: keep float16 parameters by weights 'plain'")


def fit(parameters: Sequence[Tensor], states: Sequence[dict[str, Any]], wanted: Sequence[bool]) -> None:
    """Give the states of parameters their low bytes, zeros at first, where they are wanted, and drop them elsewhere.

    float32 parameters are complete without. Raises TypeError for float16 ones that are to have them.
    """
    there = list(map(contains, states, repeat(NAME)))
    if True not in there and True not in wanted:
        return
    for parameter, own, has, wants in zip(parameters, states, there, wanted, strict=True):
        check(parameter, wants)
        fits = wants and parameter.dtype == torch.bfloat16
        if fits and not has:
            own[NAME] = sharded.zeros_like(parameter, torch.int8)
        if has and not fits:
            del own[NAME]
