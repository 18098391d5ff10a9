"""How Triton kernels round what the optimizer has moved: to nearest, with random bits, to 24 bits.

The formulas are those of `optim.eager` and `optim.low_byte`.
"""

import triton
import triton.language as tl

from fdpo_fast.ops.constants import Stream
from fdpo_fast.ops.triton.noise import philox_words

_ROUNDING = tl.constexpr(Stream.ROUNDING.value)


@triton.jit
def random_bits(seed, index, step, first, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return 16 bits for each of [ROWS, BLOCK] elements from `first` on."""
    counter = tl.arange(0, ROWS)[:, None] * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
    w0, w1, w2, w3 = philox_words(seed, index, step, _ROUNDING, (first // 8).to(tl.uint32) + counter.to(tl.uint32))
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return tl.interleave(words & 0xFFFF, words >> 16).to(tl.int32, bitcast=True)


@triton.jit
def random_bytes(seed, index, step, first, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return 8 bits for each of [ROWS, BLOCK] elements from `first` on.

    Two threads share a counter, and both compute its words: each has eight elements, as it reads and writes them.
    """
    half = tl.arange(0, ROWS)[:, None] * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
    counter = (first // 16).to(tl.uint32) + (half // 2).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(seed, index, step, _ROUNDING, counter)
    lower = half % 2 == 0
    words = tl.interleave(tl.where(lower, w0, w2), tl.where(lower, w1, w3))
    even, odd = tl.interleave(words & 0xFF, words >> 16 & 0xFF), tl.interleave(words >> 8 & 0xFF, words >> 24)
    return tl.interleave(even, odd).to(tl.int32, bitcast=True)


@triton.jit
def from_24_bits(weights, low):
    """Join bfloat16 weights and their low bytes, as `low_byte.joined` does."""
    alone = weights.to(tl.float32)
    both = (alone.to(tl.int32, bitcast=True) + (low.to(tl.int32) << 8)).to(tl.float32, bitcast=True)
    return tl.where(both == both, both, alone)


@triton.jit
def to_24_bits(values, bits):
    """Split values into bfloat16 weights and low bytes, as `low_byte.split` does."""
    moved = tl.where(values == values, values.to(tl.int32, bitcast=True) + bits, 0x7FC00000)
    weights = (moved + 0x8000 & -65536).to(tl.float32, bitcast=True).to(tl.bfloat16)
    return weights, (moved >> 8).to(tl.int8)


@triton.jit
def _to_bfloat16(values, bits):
    u = values.to(tl.int32, bitcast=True)
    moved = u + tl.where((u & 0x7F800000) == 0x7F800000, 0, bits)
    return (moved & -65536).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _to_float16(values, bits):
    u = values.to(tl.int32, bitcast=True)
    magnitude = u & 0x7FFFFFFF
    small = magnitude < (113 << 23)  # whose step is 2^-24
    size = tl.where(small, magnitude.to(tl.float32, bitcast=True), 0.0)
    fixed = (size * 1099511627776.0).to(tl.int32) + bits >> 16
    kept = (magnitude + (bits >> 3) & -8192).to(tl.float32, bitcast=True)
    out = tl.where(small, fixed.to(tl.float32) * 5.960464477539063e-08, kept)
    out = tl.where(u < 0, -out, out)
    return tl.where(magnitude < (143 << 23), out, values).to(tl.float16)


@triton.jit
def randomly(values, bits, dtype: tl.constexpr):
    """Round values to one of their two neighbours, as `eager.round_randomly` does."""
    return _to_bfloat16(values, bits) if dtype == tl.bfloat16 else _to_float16(values, bits)


@triton.jit
def nearest(values, dtype: tl.constexpr):
    """Round values to the nearest of a dtype, ties to even."""
    if dtype == tl.bfloat16:  # in so many words: the interpreter truncates
        out = _to_bfloat16(values, 0x7FFF + ((values.to(tl.int32, bitcast=True) >> 16) & 1))
    else:
        out = values.to(dtype)
    return out
