"""Where the elements of a pair's samples lie, for the Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def offsets(at, middle, inner, outer_stride, middle_stride, inner_stride, DENSE: tl.constexpr):
    """Return the addresses of the elements `at` of a sample of sizes [..., middle, inner], relative to its row."""
    if DENSE:
        return at
    k, rest = at % inner, at // inner
    return (rest // middle) * outer_stride + (rest % middle) * middle_stride + k * inner_stride


@triton.jit
def pair_rows(pair, pairs, INTERLEAVED: tl.constexpr):
    """Return the rows of the preferred and of the dispreferred sample."""
    if INTERLEAVED:
        return pair * 2, pair * 2 + 1
    return pair, pairs + pair


@triton.jit
def load(start, at, inside):
    """Load elements as float32; zeros outside."""
    return tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
