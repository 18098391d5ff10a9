"""The counter-based draws in Triton: words, normals, and `add_noise` in one launch.

A float32 carries too few digits for two units in the last place through logarithm, root, sine and product: each step
hands on what its rounding lost. There is no float64, which consumer GPUs run at a sixty-fourth of the speed.
"""

import triton
import triton.language as tl

from fdpo_fast.ops.constants import Stream
from fdpo_fast.ops.triton.math import LN2_HIGH, LN2_LOW
from fdpo_fast.ops.triton.rows import load, offsets, pair_rows

# 2 pi / 2^32 in two floats
_TURN_HIGH = tl.constexpr(1.462918119976564e-09)
_TURN_LOW = tl.constexpr(-4.070940267922164e-17)
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
_NOISE, _TIMESTEP = tl.constexpr(Stream.NOISE.value), tl.constexpr(Stream.TIMESTEP.value)


@triton.jit
def _two_sum(a, b):
    """Return a + b as a float and what it lost; |a| >= |b|, or a = 0."""
    s = a + b
    return s, b - (s - a)


@triton.jit
def _radius(x):
    """Return sqrt(-2 log((x + 1) / 2^32)) of words x, as a float and what it lost."""
    # (x + 1) = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2); f is an integer over 2^e and exact in two floats
    bits = (x.to(tl.float32) + 1.0).to(tl.int32, bitcast=True)
    e = ((bits + (0x3F800000 - _SQRT_HALF_BITS)) >> 23) - 127
    power = tl.where(e < 32, tl.full(e.shape, 1, tl.uint32) << (e & 31).to(tl.uint32), 0)
    over = (x + 1 - power).to(tl.int32, bitcast=True)
    high = over.to(tl.float32)
    unit = ((127 - e) << 23).to(tl.float32, bitcast=True)
    f, f_low = high * unit, (over - high.to(tl.int32)).to(tl.float32) * unit
    p = tl.fma(f, 0.0715135932, -0.115730077)
    p = tl.fma(f, p, 0.116617613)
    p = tl.fma(f, p, -0.124108292)
    p = tl.fma(f, p, 0.14249891)
    p = tl.fma(f, p, -0.166684881)
    p = tl.fma(f, p, 0.200007096)
    p = tl.fma(f, p, -0.249999896)
    p = tl.fma(f, p, 0.333333313)
    below = (e - 32).to(tl.float32)
    square = f * f
    tail = tl.fma(square, tl.fma(f, p, -0.5), f_low)
    tail = tl.fma(below, LN2_LOW, tail)
    s, lost = _two_sum(below * LN2_HIGH, f)
    s, lost = _two_sum(s, lost + tail)
    s, lost = -2 * s, -2 * lost
    root = tl.sqrt(s)
    rest = tl.fma(-root, root, s) + lost
    return root, tl.where(root > 0, rest / (2 * root), 0.0)


@triton.jit
def _cos_sin(y):
    """Return cosine and sine of y / 2^32 turns, each as a float and what it lost."""
    quarter = (y + 0x20000000) >> 30
    rest = (y - (quarter << 30)).to(tl.int32, bitcast=True)
    high = rest.to(tl.float32)
    low = (rest - high.to(tl.int32)).to(tl.float32)
    a = high * _TURN_HIGH
    a_low = tl.fma(high, _TURN_HIGH, -a) + tl.fma(high, _TURN_LOW, low * _TURN_HIGH)
    z = a * a
    z_low = tl.fma(a, a, -z)
    p = tl.fma(z, tl.fma(z, tl.fma(z, 2.72499324e-06, -0.00019840087), 0.00833333191), -0.166666672)
    s, s_low = _two_sum(a, tl.fma(a * z, p, a_low * tl.fma(z, -0.5, 1.0)))
    p = tl.fma(z, tl.fma(z, tl.fma(z, -2.73009618e-07, 2.48005999e-05), -0.00138888881), 0.0416666679)
    fall = tl.fma(z * z, p, -a * a_low) - 0.5 * z_low
    c, c_low = _two_sum(tl.fma(z, -0.5, 1.0), fall)
    c_low += tl.fma(z, -0.5, 1.0 - tl.fma(z, -0.5, 1.0))
    odd, c_minus, s_minus = (quarter & 1) != 0, ((quarter + 1) & 2) != 0, (quarter & 2) != 0
    c, c_low, s, s_low = (
        tl.where(odd, s, c),
        tl.where(odd, s_low, c_low),
        tl.where(odd, c, s),
        tl.where(odd, c_low, s_low),
    )
    return (
        tl.where(c_minus, -c, c),
        tl.where(c_minus, -c_low, c_low),
        tl.where(s_minus, -s, s),
        tl.where(s_minus, -s_low, s_low),
    )


@triton.jit
def _box_muller(x, y):
    """Make two standard normals of two words, within two units in the last place."""
    r, r_low = _radius(x)
    c, c_low, s, s_low = _cos_sin(y)
    return tl.fma(r, c, tl.fma(r, c_low, r_low * c)), tl.fma(r, s, tl.fma(r, s_low, r_low * s))


@triton.jit
def philox_words(seed, pair_id, visit, stream: tl.constexpr, block):
    """Return the four words of each `block` (uint32) of a draw's stream; the counter's layout is that of `noise`."""
    low, high = pair_id.to(tl.uint32), ((pair_id >> 32) << 8 | stream).to(tl.uint32)
    zero = block * 0
    return tl.philox(seed, block, zero + visit.to(tl.uint32), zero + low, zero + high)


@triton.jit
def normals(seed, pair_id, visit, first_block, SIZE: tl.constexpr):
    """Make SIZE elements of a draw's noise, from element 4 * first_block on."""
    block = first_block.to(tl.uint32) + tl.arange(0, SIZE // 4).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(seed, pair_id, visit, _NOISE, block)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def draw_of(draws, pair, pairs):
    """Return (seed, pair id, visit) of a pair from [3, pairs]."""
    return tl.load(draws + pair), tl.load(draws + pairs + pair), tl.load(draws + 2 * pairs + pair)


@triton.jit(do_not_specialize=["pairs", "chunks"])
def normals_kernel(draws, out, pairs, count, chunks, BLOCK: tl.constexpr):
    """Fill out [pairs, count] float32 with the noise of draws [3, pairs]."""
    pair, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    seed, pair_id, visit = draw_of(draws, pair, pairs)
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    tl.store(
        out + pair.to(tl.int64) * count + at, normals(seed, pair_id, visit, chunk * (BLOCK // 4), BLOCK), at < count
    )


@triton.jit
def _timestep(word, num_timesteps, density, STEPS: tl.constexpr):
    """Return the timestep that a word stands for: how many entries of the density are at most the word."""
    if STEPS == 0:
        return word * num_timesteps >> 32
    found = word * 0
    for i in tl.static_range(STEPS):
        further = found + (1 << (STEPS - 1 - i))
        entry = tl.load(density + further - 1, mask=further <= num_timesteps, other=1 << 62)
        found = tl.where(entry <= word, further, found)
    return found


@triton.jit(do_not_specialize=["pairs", "chunks", "num_timesteps"])
def add_noise_kernel(
    latents,
    draws,  # [3, B]
    signal,  # [T], by timestep
    sigma,
    density,  # [T] int64 if STEPS
    out,
    timesteps,  # [B] int64
    pairs,
    n,
    chunks,
    num_timesteps,
    x_row,  # rows, sizes and strides as in `loss`
    o_row,
    middle,
    inner,
    x_0,
    x_1,
    x_2,
    o_0,
    o_1,
    o_2,
    INTERLEAVED: tl.constexpr,
    STEPS: tl.constexpr,  # of a binary search in the density; 0 for a uniform one
    DENSE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Form x_t = signal[t] x_0 + sigma[t] noise of both samples of a pair, which share the draw."""
    pair, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    row_w, row_l = pair_rows(pair, pairs, INTERLEAVED)
    seed, pair_id, visit = draw_of(draws, pair, pairs)
    word = philox_words(seed, pair_id, visit, _TIMESTEP, tl.zeros([1], tl.uint32))[0]
    t = _timestep(tl.sum(word.to(tl.int64)), num_timesteps, density, STEPS)
    a, s = tl.load(signal + t), tl.load(sigma + t)
    if chunk == 0:
        tl.store(timesteps + pair, t)
    first = (chunk.to(tl.int64) if WIDE else chunk) * BLOCK
    at = first + tl.arange(0, BLOCK)
    inside = at < n
    x_at = offsets(at, middle, inner, x_0, x_1, x_2, DENSE)
    o_at = offsets(at, middle, inner, o_0, o_1, o_2, DENSE)
    noise = s * normals(seed, pair_id, visit, first // 4, BLOCK)
    x_w = load(latents + row_w.to(tl.int64) * x_row, x_at, inside)
    x_l = load(latents + row_l.to(tl.int64) * x_row, x_at, inside)
    tl.store(out + row_w.to(tl.int64) * o_row + o_at, (a * x_w + noise).to(out.dtype.element_ty), inside)
    tl.store(out + row_l.to(tl.int64) * o_row + o_at, (a * x_l + noise).to(out.dtype.element_ty), inside)
