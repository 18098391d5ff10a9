"""How the elements of a sample lie in memory, for code that walks several tensors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

MAX_DIMS = 3
"""Dimensions of a sample that the kernels can walk, after those that lie behind one another are merged."""


class Walk(NamedTuple):
    """An order of the elements of a sample: sizes (outer to inner), and the strides of each tensor."""

    sizes: tuple[int, int, int]
    strides: list[tuple[int, int, int]]


def walk(tensors: Sequence[Tensor], *, logical: bool) -> Walk | None:
    """The order in which to visit the elements of samples [n, ...]; None where it has more than `MAX_DIMS` dimensions.

    The first tensor's order in memory, so that channels_last is walked as it lies; or, with `logical`, that of the
    indices, which noise by its element needs.
    """
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
    if not merged:  # samples of one element
        merged.append([1, (1,) * len(tensors)])
    merged = [[1, (0,) * len(tensors)]] * (MAX_DIMS - len(merged)) + merged
    sizes = tuple(size for size, _ in merged)
    return Walk(sizes, [tuple(strides[i] for _, strides in merged) for i in range(len(tensors))])


def arrange(tensors: Sequence[Tensor], *, logical: bool) -> tuple[Sequence[Tensor], Walk | None]:
    """The tensors with the walk over them; None for elements that lie behind one another in all of them.

    In the rare case that their strides do not merge far enough, the tensors returned are contiguous copies.
    """
    for tensor in tensors:
        if not tensor.is_contiguous():
            break
    else:
        return tensors, None
    order = walk(tensors, logical=logical)
    if order is None:
        return [tensor.contiguous() for tensor in tensors], None
    dense = order.sizes[:2] == (1, 1) and all(strides[2] == 1 for strides in order.strides)
    return tensors, None if dense else order
