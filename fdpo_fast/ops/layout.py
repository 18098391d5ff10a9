"""How the elements of a sample lie in memory, for code that walks several tensors at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

MAX_DIMS = 3
"""Dimensions of a sample that the kernels can walk, after those that lie behind one another are merged."""


class Walk(NamedTuple):
    """One order of a sample's elements for several tensors: `sizes` (outer to inner) and each tensor's strides.

    `dense`: the elements lie behind one another in every tensor.
    """

    sizes: tuple[int, int, int]
    strides: list[tuple[int, int, int]]
    dense: bool


def walk(tensors: Sequence[Tensor], *, logical: bool) -> Walk | None:
    """The order in which to visit the elements of samples [n, ...]; None where it has more than `MAX_DIMS` dimensions.

    The first tensor's order in memory, so that channels_last is walked as it lies; or, with `logical`, that of the
    indices, which noise by its element needs.
    """
    count = tensors[0][0].numel() if len(tensors[0]) else 0
    if all(tensor.is_contiguous() for tensor in tensors):
        return Walk((1, 1, count), [(0, 0, 1)] * len(tensors), True)
    dims = [d for d in range(1, tensors[0].ndim) if tensors[0].shape[d] > 1]
    if not logical:
        dims.sort(key=lambda d: -tensors[0].stride(d))
    merged: list[list] = []  # [size, (stride of each tensor)], outer to inner
    for d in dims:
        size, strides = tensors[0].shape[d], tuple(tensor.stride(d) for tensor in tensors)
        if merged and merged[-1][1] == tuple(stride * size for stride in strides):
            merged[-1] = [merged[-1][0] * size, strides]
        else:
            merged.append([size, strides])
    if len(merged) > MAX_DIMS:
        return None
    merged = [[1, (0,) * len(tensors)]] * (MAX_DIMS - len(merged)) + merged
    if merged[-1][0] == 1:  # a single element
        merged[-1] = [1, (1,) * len(tensors)]
    sizes = tuple(size for size, _ in merged)
    strides = [tuple(stride[i] for _, stride in merged) for i in range(len(tensors))]
    return Walk(sizes, strides, sizes[:2] == (1, 1) and all(stride[2] == 1 for stride in strides))


@contextmanager
def walked(inputs: Sequence[Tensor], out: Tensor | None, *, logical: bool) -> Iterator[tuple[list[Tensor], Walk]]:
    """The inputs, and `out` behind them if there is one, with a walk over all of them.

    In the rare case that strides do not merge far enough these are contiguous copies, and `out` is filled on leaving.
    """
    tensors = [*inputs, *([] if out is None else [out])]
    order = walk(tensors, logical=logical)
    if order is not None:
        yield tensors, order
        return
    tensors = [tensor.contiguous() for tensor in tensors]
    yield tensors, walk(tensors, logical=logical)
    if out is not None:
        out.copy_(tensors[-1])
