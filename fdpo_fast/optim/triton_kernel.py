"""The optimizer's step in Triton: many tensors in one launch, a block of 256 elements to each warp.

The formulas are those of `optim.eager`, the lines of the maps those of `optim.codebook`.
"""

import triton
import triton.language as tl

from fdpo_fast.ops.triton.noise import philox_words
from fdpo_fast.optim.codebook import LOWEST, SEGMENTS_PER_BIT
from fdpo_fast.optim.triton_rounding import from_24_bits, nearest, random_bits, random_bytes, randomly, to_24_bits

_LOWEST, _SEGMENTS_PER_BIT = tl.constexpr(LOWEST), tl.constexpr(SEGMENTS_PER_BIT)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_SMALLEST = tl.constexpr(1.1754943508222875e-38)
_EXACT = tl.constexpr(not isinstance(philox_words, triton.JITFunction))
"""Whether this is the interpreter, which has neither assembly nor a fused product and sum."""
_LANES = tl.constexpr(128)  # partial sums read at once


@triton.jit
def _rank(lines, x):
    """Return the ranks of values in [0, 1]."""
    bits = tl.maximum(x, _LOWEST).to(tl.uint32, bitcast=True)
    before = tl.umulhi(bits, _SEGMENTS_PER_BIT).to(tl.int32) & 7
    at = before + (x >= tl.load(lines + 16 + before)).to(tl.int32)
    rank = tl.minimum(tl.load(lines + 24 + at) + tl.load(lines + 32 + at) * x, tl.load(lines + 40 + at))
    return rank.to(tl.int32)


@triton.jit
def _about(x, ASM: tl.constexpr):
    """Return what an instruction of the hardware makes of x, to within an ulp or so: "rcp" 1 / x, "rsqrt" its root."""
    return tl.inline_asm_elementwise(
        ASM + ".approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _root(x):
    """Return sqrt(x) of values >= 0, correctly rounded, where x is finite.

    As `sqrt_rn` does it, but for all lanes alike: where that leaves the fast path, eight of them wait for each other.
    """
    if _EXACT:
        root = tl.sqrt_rn(x)
    else:
        small = x < 5.421010862427522e-20  # 2^-64: what is left over below would be denormal
        y = x * tl.where(small, 7.922816251426434e28, 1.0)
        about = tl.minimum(_about(y, "rsqrt"), _LARGEST)
        first = y * about
        root = tl.fma(tl.fma(-first, first, y), 0.5 * about, first)
        root *= tl.where(small, 3.552713678800501e-15, 1.0)
    return root


@triton.jit
def _quotient(a, b):
    """Return a / b, correctly rounded where neither b nor what is left over, 2^-25 of a, is denormal; finite b > 0."""
    if _EXACT:
        q = tl.div_rn(a, b)
    else:
        about = _about(b, "rcp")
        about = tl.fma(tl.fma(-b, about, 1.0), about, about)
        q = a * about
        q = tl.fma(tl.fma(-b, q, a), about, q)
        q = tl.fma(tl.fma(-b, q, a), about, q)
    return q


@triton.jit
def _normalised(state):
    """Divide the rows of a state by their largest magnitudes; return both."""
    absmax = tl.max(tl.abs(state), 1)
    absmax = tl.where(absmax < _SMALLEST, 0.0, absmax)
    scale = tl.where(absmax > 0, tl.div_rn(tl.full(absmax.shape, 1.0, tl.float32), absmax), 0.0)
    return state * scale[:, None], absmax


@triton.jit
def _find(table, tensors, ROW: tl.constexpr):
    """Find the tensor of this program, and the first program of that: `table` counts programs up to the end of each."""
    low, high = tensors * 0, tensors
    while low < high:
        middle = (low + high) // 2
        beyond = tl.load(table + ROW * tensors + middle) > tl.program_id(0)
        high = tl.where(beyond, middle, high)
        low = tl.where(beyond, low, middle + 1)
    return low, tl.load(table + ROW * tensors + low - 1, low > 0, 0).to(tl.int32)


@triton.jit
def _address(table, tensors, tensor, like, ROW: tl.constexpr, ALIGNED: tl.constexpr):
    address = tl.load(table + ROW * tensors + tensor).to(like.dtype)
    return tl.multiple_of(address, 16) if ALIGNED else address


@triton.jit
def _count(table, tensors, tensor, ALIGNED: tl.constexpr):
    count = tl.load(table + 5 * tensors + tensor)
    return tl.multiple_of(count, 16) if ALIGNED else count


@triton.jit(do_not_specialize=["max_norm", "tensors"])
def norm_kernel(
    table,  # as below
    factors,  # [tensors], then room for a sum of each program
    counters,  # [tensors] zeros, which they are again in the end
    bad,  # [] becomes 1 where a gradient is not finite
    max_norm,  # 0: none
    tensors,
    grad_like,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write what each gradient is to be multiplied with: min(1, max_norm / its norm), or 0 where it is not finite.

    The last program of a tensor to arrive adds up what all have left, always in the same order.
    """
    tensor, before = _find(table, tensors, 11)
    grad = _address(table, tensors, tensor, grad_like, 1, ALIGNED)
    count = _count(table, tensors, tensor, ALIGNED)
    start = (tl.program_id(0) - before).to(tl.int64) * CHUNK
    sums = tl.zeros([TILE], tl.float32)
    for tile in range(CHUNK // TILE):
        at = start + tile * TILE + tl.arange(0, TILE)
        g = tl.load(grad + at, at < count, 0.0).to(tl.float32)
        sums += g * g
    partials = factors + tensors
    tl.store(partials + tl.program_id(0), tl.sum(sums))
    end = tl.load(table + 11 * tensors + tensor).to(tl.int32)
    tl.debug_barrier()
    if tl.atomic_add(counters + tensor, 1, sem="acq_rel", scope="gpu") == end - before - 1:
        tl.store(counters + tensor, 0)
        lanes = tl.arange(0, _LANES)
        total = tl.zeros([_LANES], tl.float32)
        for first in range(before, end, _LANES):
            total += tl.load(partials + first + lanes, first + lanes < end, 0.0, cache_modifier=".cg")
        norm = tl.sqrt_rn(tl.sum(total))
        finite = norm <= _LARGEST
        bound = tl.where(max_norm > 0, tl.div_rn(max_norm * 0 + 1.0, norm) * max_norm, 1.0)  # as torch divides a number
        tl.store(factors + tensor, tl.where(finite, tl.minimum(bound, 1.0), 0.0))
        tl.store(bad, 1.0, not finite)


@triton.jit(do_not_specialize=["tensors"])
def step_kernel(
    table,  # [12, tensors] int64, see optim.triton: addresses of data, grad, m, v, copy or low; count; both absmax; ...
    rates,  # [rules, 14]: the seven of `Rates`
    words,  # [rules, 7], the same memory: seed, step and first behind the rates
    lines,  # [2, 6, 8], then the values of all codes, [2, 256]
    factors,  # [tensors], of the gradients; or None
    tensors,
    data_like,
    grad_like,
    state_like,
    COPIED: tl.constexpr,
    LOW: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step the blocks of this program: decode, update, encode, and round the parameters."""
    tensor, before = _find(table, tensors, 10)
    data, grad = (
        _address(table, tensors, tensor, data_like, 0, ALIGNED),
        _address(table, tensors, tensor, grad_like, 1, ALIGNED),
    )
    m_at = _address(table, tensors, tensor, state_like, 2, ALIGNED)
    v_at = _address(table, tensors, tensor, state_like, 3, ALIGNED)
    absmax_m = _address(table, tensors, tensor, lines, 6, False)
    absmax_v = _address(table, tensors, tensor, lines, 7, False)
    count = _count(table, tensors, tensor, ALIGNED)
    rule = tl.load(table + 9 * tensors + tensor)
    rate, word = rates + rule * 14, words + rule * 7

    block = (tl.program_id(0) - before).to(tl.int64) * ROWS
    at = block * BLOCK + tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = at < count
    blocks = block + tl.arange(0, ROWS)
    there = blocks * BLOCK < count
    g = tl.load(grad + at, inside, 0.0).to(tl.float32)
    if factors is not None:
        factor = tl.load(factors + tensor)
        dtype: tl.constexpr = grad_like.dtype.element_ty
        g = tl.where(factor > 0, nearest(g * nearest(factor, dtype).to(tl.float32), dtype).to(tl.float32), 0.0)
    CODED: tl.constexpr = state_like.dtype.element_ty == tl.uint8
    m, v = tl.load(m_at + at, inside, 0), tl.load(v_at + at, inside, 0)
    if CODED:
        to_m, to_v = tl.load(absmax_m + blocks, there, 0.0), tl.load(absmax_v + blocks, there, 0.0)
        m = tl.load(lines + 96 + m.to(tl.uint32)) * (tl.load(rate) * to_m)[:, None]
        v = tl.load(lines + 352 + v.to(tl.uint32)) * (tl.load(rate + 2) * to_v)[:, None]
    else:
        m, v = tl.load(rate) * m, tl.load(rate + 2) * v
    m = m + tl.load(rate + 1) * g
    v = v + tl.load(rate + 3) * g * g
    weights = tl.load(data + at, inside, 0.0)
    p = weights.to(tl.float32)
    if LOW:
        low = tl.load(table + 4 * tensors + tensor).to(tl.pointer_type(tl.int8))
        low = (tl.multiple_of(low, 16) if ALIGNED else low) + at
        p = from_24_bits(weights, tl.load(low, inside, 0))
    change = tl.load(rate + 5) * m
    change = tl.where(v == float("inf"), change * 0.0, _quotient(change, _root(v) + tl.load(rate + 6)))
    moved = p - (tl.load(rate + 4) * p + change)
    index, first = tl.load(table + 8 * tensors + tensor), tl.load(word + 6) + block * BLOCK
    if LOW:
        if STOCHASTIC:
            bits = random_bytes(tl.load(word + 4), index, tl.load(word + 5), first, ROWS, BLOCK)
        else:
            bits = 0x7F + ((moved.to(tl.int32, bitcast=True) >> 8) & 1)
        weights, lowest = to_24_bits(moved, bits)
        tl.store(data + at, weights, inside)
        tl.store(low, lowest, inside)
    elif STOCHASTIC:
        bits = random_bits(tl.load(word + 4), index, tl.load(word + 5), first, ROWS, BLOCK)
        tl.store(data + at, randomly(moved, bits, data_like.dtype.element_ty), inside)
    else:
        tl.store(data + at, nearest(moved, data_like.dtype.element_ty), inside)
    if COPIED:
        copy = tl.load(table + 4 * tensors + tensor).to(tl.pointer_type(tl.bfloat16))
        tl.store((tl.multiple_of(copy, 16) if ALIGNED else copy) + at, nearest(moved, tl.bfloat16), inside)
    held = inside & (v <= _LARGEST)  # what float32 cannot hold is forgotten
    m, v = tl.where(held, m, 0.0), tl.where(held, v, 0.0)
    if CODED:
        x, largest_m = _normalised(m)
        y, largest_v = _normalised(v)
        rank = _rank(lines, tl.abs(x))
        tl.store(m_at + at, tl.maximum(tl.where(x < 0, 127 - rank, 127 + rank), 0).to(tl.uint8), inside)
        tl.store(v_at + at, _rank(lines + 48, y).to(tl.uint8), inside)
        tl.store(absmax_m + blocks, largest_m, there)
        tl.store(absmax_v + blocks, largest_v, there)
    else:
        tl.store(m_at + at, m, inside)
        tl.store(v_at + at, v, inside)
