"""How the elements of a sample lie in memory, for code that walks several tensors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

MAX_DIMS = 3
"""Dimensions of a sample that the kernels can walk, after those that lie behind one another are merged."""


class Strides(NamedTuple):
    """How several tensors lie over the elements of a sample, from the outer to the inner dimension."""

    sizes: tuple[int, ...]
    """The elements along each of `MAX_DIMS` dimensions."""
    of: tuple[tuple[int, ...], ...]
    """The strides of each tensor."""


def merged(tensors: Sequence[Tensor], *, logical: bool) -> Strides | None:
    """Return the fewest dimensions that hold the elements of samples [n, ...]; None for more than `MAX_DIMS`.

    In the first tensor's order in memory, so that channels_last is walked as it lies; or, with `logical`,
    that of the indices, which noise by its element needs.
    """
    dims = [d for d in range(1, tensors[0].ndim) if tensors[0].shape[d] > 1]
    if not logical:
        dims.sort(key=tensors[0].stride, reverse=True)
    dimensions: list[tuple[int, tuple[int, ...]]] = []  # (size, strides of each tensor), outer to inner
    for d in dims:
        size, strides = tensors[0].shape[d], tuple(tensor.stride(d) for tensor in tensors)
        if dimensions and dimensions[-1][1] == tuple(stride * size for stride in strides):
            dimensions[-1] = (dimensions[-1][0] * size, strides)
        else:
            dimensions.append((size, strides))
    if len(dimensions) > MAX_DIMS:
        return None
    if not dimensions:  # samples of one element
        dimensions.append((1, (1,) * len(tensors)))
    dimensions = [(1, (0,) * len(tensors))] * (MAX_DIMS - len(dimensions)) + dimensions
    sizes = tuple(size for size, _ in dimensions)
    return Strides(sizes, tuple(tuple(strides[i] for _, strides in dimensions) for i in range(len(tensors))))


def arrange(tensors: Sequence[Tensor], *, logical: bool) -> tuple[Sequence[Tensor], Strides | None]:
    """Return the tensors with their samples' strides; None where elements lie behind one another in all of them.

    In the rare case that their strides do not merge far enough, the tensors returned are contiguous copies.
    """
    for tensor in tensors:
        if not tensor.is_contiguous():
            break
    else:
        return tensors, None
    order = merged(tensors, logical=logical)
    if order is None:
        return [tensor.contiguous() for tensor in tensors], None
    dense = order.sizes[:2] == (1, 1) and all(strides[2] == 1 for strides in order.of)
    return tensors, None if dense else order
