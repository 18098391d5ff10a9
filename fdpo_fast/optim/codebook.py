r"""bitsandbytes' dynamic map of 8-bit states, and the same as lines over its decades.

The map (Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", arXiv 1511.04561) has seven decades below 1;
decade i has n_i values, the middles of n_i equal parts of 10^(i-6) [0.1, 1]: n_i = 2^i of each sign where it is signed,
2^(i+1) where it is not. With 0 and 1 these are 256 values, coded by rank. A state is code and largest magnitude of its
block of 256, `state = map[code] * absmax`.

Within a decade the map is a line, and the first codes of the decades are powers of two. So with k the rank among
values >= 0 and K = k + 1/2 (signed) or k + 1 (unsigned), whose exponent is the decade,

    map[k] = offset[e] + slope[e] K,        e = (exponent of K) mod 8,

where 0 and 1, which share an exponent modulo 8, lie on one line too. Back, for x in [0, 1], which lies between the
thresholds s - 1 and s of the eight segments (seven decades and the value 1):

    k = min(floor(start[s] + rise[s] x), last[s]),

the nearest value: within a decade the cells are equal parts, and the thresholds are the middles between decades. The
bits of a float, read as an integer, are its logarithm to within 0.09 binades: product and shift make s or s - 1 of it,

    (bits of max(x, LOWEST) * SEGMENTS_PER_BIT >> 32) mod 8,

with or without the lower 16 bits,

and one comparison says which.

At its lower end we leave the nearest value, as bitsandbytes does on CPUs (whose 2^16 cells have middles of 2^-16): v is
at least map[LEAST_V] = 1.6e-5 of its block's largest, since an update divides by its root, and an m that is not 0 at
least map[LEAST_M] = 3e-6. So nothing is divided by a v that was lost, and codes are within two of bitsandbytes'; but
for an m of exactly 0, which stays 0 here and becomes 2e-5 of the largest there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fdpo_fast.ops.once import once

LEAST_M, LEAST_V = 2, 7
"""The least ranks of an m that is not 0, and of any v."""
SEGMENTS_PER_BIT = 154
"""The slope of segments over the bits of a float, log10(2) / 128 * 2^16.

The upper half of a float counts in 128ths of a binade; that of 1.0 gives 38 = 6 modulo 8.
"""
LOWEST = 1.5 * 2.0**-21
"""A value in the first segment, and the least that is not taken for one of the last."""


class DynamicMap(NamedTuple):
    """One of the two maps as tensors of float32; `values` and `decoded` are [256], the others [8]."""

    signed: bool
    values: Tensor
    decoded: Tensor  # what the lines give for each code: `values` to within two ulp
    offset: Tensor  # decoding, by exponent modulo 8
    slope: Tensor
    threshold: Tensor  # encoding, by segment: where the next one begins
    start: Tensor
    rise: Tensor
    last: Tensor

    @property
    def table(self) -> Tensor:
        """Return the lines [6, 8] as the kernels read them: offset, slope, threshold, start, rise, last."""
        return torch.stack(self[3:])


@once
def dynamic_map(signed: bool) -> DynamicMap:
    """Compute the map of m (signed) or of v (unsigned)."""
    counts = [2 ** (i if signed else i + 1) for i in range(7)]
    tens = [10.0 ** (i - 6) for i in range(7)]
    single = [
        torch.linspace(0.1, 1, n + 1, dtype=torch.float32, device="cpu") for n in counts
    ]  # as the format has them
    positive = [float(ten * x) for ten, at in zip(tens, single, strict=True) for x in (at[1:] + at[:-1]) / 2]
    negative = [-value for value in reversed(positive)] if signed else []
    values = _doubles([*negative, 0.0, *positive, 1.0])

    # Rank k of the decade's first value is n - k_0 with K = k + half; its exponent is i or i + 1.
    k_0, shift, half = (0, 0, 0.5) if signed else (1, 1, 1.0)
    offset, slope = _doubles([0.0] * 8), _doubles([0.0] * 8)
    for i, (ten, n) in enumerate(zip(tens, counts, strict=True)):
        e = (127 + i + shift) % 8
        slope[e] = 0.9 * ten / n
        offset[e] = 0.1 * ten + slope[e] * (k_0 - n + 0.5 - half)
    e = (127 + 7 + shift) % 8  # 0 and 1
    ranks = len(positive) + 1
    slope[e], offset[e] = 1.0 / ranks, -half / ranks

    # Cells: decade i from 10^(i-6) 0.1 on, each 0.9 10^(i-6) / n wide; its last one reaches one width into the next.
    threshold = _doubles([ten * (1 + 0.9 / n) for ten, n in zip(tens, counts, strict=True)] + [float("inf")])
    threshold[6] = (1 + positive[-1]) / 2
    rise = _doubles([n / (0.9 * ten) for ten, n in zip(tens, counts, strict=True)] + [0.0])
    start = _doubles([n - k_0 - n / 9 for n in counts] + [float(ranks)])
    last = _doubles([2.0 * n - k_0 - 1 for n in counts] + [float(ranks)])
    # The ends of the map, see above: 0 stays 0, anything else is at least LEAST_M; v is LEAST_V from 0 on.
    if signed:
        start[0], rise[0], last[0] = 0.0, 1e30, LEAST_M
    else:
        start[:2], rise[:2], last[:2] = LEAST_V, 0.0, LEAST_V
    lines = [line.float() for line in (offset, slope, threshold, start, rise, last)]
    return DynamicMap(signed, values.float(), _decoded(signed, *lines[:2]), *lines)


def _decoded(signed: bool, offset: Tensor, slope: Tensor) -> Tensor:
    """Return the values that the lines of a map give for all codes, in float32."""
    codes = torch.arange(256, dtype=torch.float32, device="cpu")
    ranks = (codes - 127).abs() + 0.5 if signed else codes + 1
    exponent = (ranks.view(torch.int32) >> 23) & 7
    values = offset[exponent] + slope[exponent] * ranks
    return torch.where(codes < 127, -values, values) if signed else values


def _doubles(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")
