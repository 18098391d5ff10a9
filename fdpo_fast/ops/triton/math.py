"""Functions of float32 for the Triton kernels, accurate to about one unit in the last place.

The hardware's exponential and logarithm are not: they lose the digits that a margin near the reference consists of.
Polynomials are Chebyshev fits whose errors lie below 2^-27. Everything compiles to straight-line code without tables.
"""

import triton
import triton.language as tl

from fdpo_fast.ops.constants import EXP_CAP

CAP = tl.constexpr(EXP_CAP)
_LN2 = tl.constexpr(0.6931471805599453)
# ln 2 in two parts, the first short enough that its products with exponents are exact
LN2_HIGH = tl.constexpr(0.693359375)
LN2_LOW = tl.constexpr(-2.12194440054690583e-4)


@triton.jit
def _reduced_exp(x):
    """Return (s, q) with e^x = s (1 + q), s a power of two and |q| < 0.42; x is brought into [-87, 88]."""
    x = tl.minimum(tl.maximum(x, -87.0, propagate_nan=tl.PropagateNan.ALL), 88.0, propagate_nan=tl.PropagateNan.ALL)
    n = tl.floor(tl.fma(x, 1.4426950408889634, 0.5))
    r = tl.fma(n, -LN2_LOW, tl.fma(n, -LN2_HIGH, x))
    p = tl.fma(r, 0.000198993192, 0.00139336765)
    p = tl.fma(r, p, 0.00833329838)
    p = tl.fma(r, p, 0.041666463)
    p = tl.fma(r, p, 0.166666672)
    p = tl.fma(r, p, 0.5)
    scale = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return scale, tl.fma(r * r, p, r)


@triton.jit
def exp(x):
    """Return e^x; 0 below -87."""
    s, q = _reduced_exp(x)
    return tl.where(x < -87.0, 0.0, tl.fma(s, q, s))


@triton.jit
def expm1(x):
    """Return e^x - 1 without losing the digits of a small x."""
    s, q = _reduced_exp(x)
    return tl.fma(s, q, s - 1)


@triton.jit
def log1p(y):
    """Return log(1 + y), -1/2 <= y <= 1: a step of ln 2 up or down, and f - (f^2/2 - s (f^2/2 + R)) for the rest.

    s = f / (2 + f), and R is what 2 artanh(s) has beyond 2 s: fdlibm's arrangement, whose roundings are small beside f.
    """
    up, down = y > 0.41421356, y < -0.29289322
    f = tl.where(up, (y - 1) * 0.5, tl.where(down, 2 * y + 1, y))
    s = tl.div_rn(f, 2 + f)
    z = s * s
    rest = z * tl.fma(z, tl.fma(z, 0.295832128, 0.399886996), 0.666666866)
    half_square = 0.5 * f * f
    return tl.where(up, _LN2, tl.where(down, -_LN2, 0.0)) + (f - (half_square - s * (half_square + rest)))


@triton.jit
def softplus(x):
    """Return log(1 + e^x), which does not overflow."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p(exp(-tl.abs(x)))


@triton.jit
def log_2_sigmoid(x):
    """Return log sigmoid(x) + log 2, without the constant that would cost the digits of a small x."""
    return tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - log1p(expm1(-tl.abs(x)) * 0.5)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + e^-x), which does not overflow."""
    e = exp(-tl.abs(x))
    return tl.div_rn(tl.where(x >= 0, 1.0, e), 1 + e)


@triton.jit
def link(whole, linear, scale, rate, logistic, clip):
    """Return (h(u) - h(0), h'(u), how often it is a tangent) of `divergences`, u = whole: one where |u| > clip.

    A term whose coefficient is zero is left out: 0 * inf is NaN.
    """
    u = tl.minimum(tl.maximum(whole, -clip, propagate_nan=tl.PropagateNan.ALL), clip, propagate_nan=tl.PropagateNan.ALL)
    x = rate * u
    below = tl.minimum(x, CAP, propagate_nan=tl.PropagateNan.ALL)
    slope = exp(below)
    exponential = tl.where(x > CAP, tl.fma(slope, x - CAP, expm1(below)), expm1(below))
    value = tl.where(linear != 0, linear * u, 0.0)
    value += tl.where(scale != 0, scale * exponential, 0.0)
    value += tl.where(logistic != 0, logistic * log_2_sigmoid(u), 0.0)
    slope = linear + scale * rate * slope + logistic * sigmoid(-u)
    past = tl.abs(whole) > clip
    value = tl.where(past, tl.fma(slope, whole - u, value), value)
    return value, slope, (past | ((scale != 0) & (rate * whole > CAP))).to(tl.float32)


@triton.jit
def pair_loss(gap, beta, kept, flipped, hinge, square):
    """Return (loss, d loss / d gap) of `loss.eager.LossType`; a term whose coefficient is zero is left out."""
    z = beta * gap
    miss = gap - tl.div_rn(0.5, beta)
    inside = tl.where(z >= 1, 0.0, 1 - z)
    value = tl.where(kept != 0, kept * softplus(-z), 0.0)
    value += tl.where(flipped != 0, flipped * softplus(z), 0.0)
    value += tl.where(hinge != 0, hinge * inside, 0.0)
    value += tl.where(square != 0, square * miss * miss, 0.0)
    slope = beta * (flipped * sigmoid(z) - kept * sigmoid(-z) - tl.where(z >= 1, 0.0, hinge))
    return value, slope + tl.where(square != 0, 2 * square * miss, 0.0)


@triton.jit
def loser_scale(may_undo, by_gap, own, slope_w, slope_l, error, product):
    """Return how far the gradient of the dispreferred sample is scaled, float64, as `loss.preserving` says it.

    own: what the preferred sample is pushed by besides, in units of by_gap times a slope.
    """
    push = slope_w.to(tl.float64) + own / tl.where(by_gap < 0, -by_gap, 1.0)
    most, asked = may_undo * push * error, slope_l.to(tl.float64) * product
    held = (by_gap < 0) & (most >= 0) & (most < asked)
    return tl.where(held, most / tl.where(held, asked, 1.0), 1.0)
