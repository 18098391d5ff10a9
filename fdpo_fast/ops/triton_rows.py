"""Where the elements of a pair's samples lie, for the Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def offsets(at, sizes, strides, DENSE: tl.constexpr):
    """Addresses of the elements `at` of a sample, relative to its row; sizes and strides from outer to inner."""
    if DENSE:
        return at
    k, rest = at % sizes[1], at // sizes[1]
    return (rest // sizes[0]) * strides[0] + (rest % sizes[0]) * strides[1] + k * strides[2]


@triton.jit
def pair_rows(pair, pairs, INTERLEAVED: tl.constexpr):
    """Rows of the preferred and of the dispreferred sample."""
    if INTERLEAVED:
        return pair * 2, pair * 2 + 1
    return pair, pairs + pair


@triton.jit
def load(start, at, inside):
    return tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
