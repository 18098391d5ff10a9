"""The Triton kernels of the loss: one launch forward, one backward.

A program takes BLOCK elements of both samples of a pair. Forward, it leaves its sums in `partials`; the
last program of a pair to arrive adds them up, always in the order of the chunks, and finishes the pair; whoever
finishes the last pair reduces the batch. The counters of arrivals are zero between launches.

Products and sums are contracted only where `tl.fma` says so (the launches turn the compiler's own choice off).
"""

import triton
import triton.language as tl

from fdpo_fast.ops.constants import Stat
from fdpo_fast.ops.triton.math import link, loser_scale, pair_loss
from fdpo_fast.ops.triton.noise import draw_of, normals
from fdpo_fast.ops.triton.rows import load, offsets, pair_rows

_ERROR_W, _ERROR_L = tl.constexpr(Stat.ERROR_W.value), tl.constexpr(Stat.ERROR_L.value)
_REF_ERROR_W, _REF_ERROR_L = tl.constexpr(Stat.REF_ERROR_W.value), tl.constexpr(Stat.REF_ERROR_L.value)
_LOG_RATIO_W, _LOG_RATIO_L = tl.constexpr(Stat.LOG_RATIO_W.value), tl.constexpr(Stat.LOG_RATIO_L.value)
_MARGIN, _CLIPPED = tl.constexpr(Stat.MARGIN.value), tl.constexpr(Stat.CLIPPED.value)
_LOSER_SCALE = tl.constexpr(Stat.LOSER_SCALE.value)
_COEFFICIENT_W, _COEFFICIENT_L = tl.constexpr(Stat.COEFFICIENT_W.value), tl.constexpr(Stat.COEFFICIENT_L.value)
_ROWS = tl.constexpr(len(Stat))
_LANES = tl.constexpr(128)  # partial sums, or pairs, read at once


@triton.jit
def _arrive(counter):
    """Count this program in, behind everything it has written; returns how many came before."""
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")


@triton.jit
def _total(start, count):
    """Add up `count` float64 numbers that other programs wrote, always in the same order."""
    lanes = tl.arange(0, _LANES)
    sums = tl.zeros([_LANES], tl.float64)
    for at in range(0, count, _LANES):
        sums += tl.load(start + at + lanes, mask=at + lanes < count, other=0.0, cache_modifier=".cg")
    return tl.sum(sums)


@triton.jit
def _side(partials, ref_errors, row, n, chunks, ratio_scale, REF_ERRORS: tl.constexpr):
    """Return (error, ref_error, log-ratio) of a sample from its partial sums [3, chunks], float32."""
    error = _total(partials, chunks) / n
    if REF_ERRORS:
        ref_error = tl.load(ref_errors + row).to(tl.float64)
        delta = error - ref_error
    else:
        ref_error = _total(partials + chunks, chunks) / n
        delta = _total(partials + 2 * chunks, chunks) / n
    return error.to(tl.float32), ref_error.to(tl.float32), (-ratio_scale * delta).to(tl.float32)


@triton.jit
def _targets(
    draws, data, on, pair, pairs, row_w, row_l, stride, at, inside, first,
    DRAWN: tl.constexpr, MIXED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return a tile of the targets of both samples: data, the noise of the draw, or the two mixed."""
    if DRAWN:
        seed, pair_id, visit = draw_of(draws, pair, pairs)
        target_w = tl.where(inside, normals(seed, pair_id, visit, first // 4, BLOCK), 0.0)
        target_l = target_w
        if MIXED:
            noise, on_data = tl.load(on + pair) * target_w, tl.load(on + pairs + pair)
            target_w = on_data * load(data + row_w.to(tl.int64) * stride, at, inside) + noise
            target_l = on_data * load(data + row_l.to(tl.int64) * stride, at, inside) + noise
    else:
        target_w = load(data + row_w.to(tl.int64) * stride, at, inside)
        target_l = load(data + row_l.to(tl.int64) * stride, at, inside)
    return target_w, target_l


@triton.jit
def _terms(p, ref, at, t, inside, REF_ERRORS: tl.constexpr):
    """Return p - t of a tile, and what it adds to (error, ref_error, delta); of errors alone to the first."""
    miss, zero = p - t, tl.zeros(p.shape, tl.float32)  # with products in place of fma ptxas takes more registers
    if REF_ERRORS:
        return miss, tl.fma(miss, miss, zero), zero, zero
    r = load(ref, at, inside)
    ref_miss = r - t
    return miss, tl.fma(miss, miss, zero), tl.fma(ref_miss, ref_miss, zero), tl.fma(p - r, miss + ref_miss, zero)


@triton.jit
def _store_sums(start, error, ref_error, delta, chunks, REF_ERRORS: tl.constexpr):
    """Store the sums over lanes, in float64, into [3, chunks]; of errors alone into [1, chunks]."""
    tl.store(start, tl.sum(error.to(tl.float64)))
    if not REF_ERRORS:
        tl.store(start + chunks, tl.sum(ref_error.to(tl.float64)))
        tl.store(start + 2 * chunks, tl.sum(delta.to(tl.float64)))


@triton.jit
def _reduce_batch(losses, stats, loss, pairs, share, REDUCE: tl.constexpr):
    """Store the share of positive margins, and the losses' sum times `share` if it is asked for."""
    lanes = tl.arange(0, _LANES)
    total, right = tl.zeros([_LANES], tl.float64), tl.zeros([_LANES], tl.float32)
    for first_pair in range(0, pairs, _LANES):
        those = first_pair + lanes
        known = those < pairs
        total += tl.load(losses + those, mask=known, other=0.0, cache_modifier=".cg").to(tl.float64)
        margins = tl.load(stats + _MARGIN * pairs + those, mask=known, other=-1.0, cache_modifier=".cg")
        right += (margins > 0).to(tl.float32) + 0.5 * (margins == 0).to(tl.float32)
    tl.store(stats + _ROWS * pairs, tl.div_rn(tl.sum(right), pairs.to(tl.float32)))
    if REDUCE:
        tl.store(loss, (tl.sum(total) * share).to(tl.float32))


# Of a call only the shape class, dtypes and switches are compiled in: not the divergence, nor the number of pairs.
@triton.jit(do_not_specialize=["pairs", "chunks"])
def loss_forward_kernel(
    pred,  # [2B, ...], as ref and data
    ref,  # errors [2B] float64 if REF_ERRORS
    draws,  # [3, B] if DRAWN
    data,  # the target if not DRAWN, what noise is mixed with if MIXED
    on,  # [2, B] float32 if MIXED: of noise and of data
    weight,  # [B]
    loss,  # [], or [B] if not REDUCE
    losses,  # [B]: room, or `loss` itself
    stats,  # [11 B + 1], rows of Stat and the accuracy
    partials,  # [B, 6 or 2 if REF_ERRORS, and 1 if PRESERVING, chunks] float64: room
    counters,  # [1 + B] int32: of finished pairs, and of each pair's programs
    pairs,
    n,
    chunks,
    p_row,  # from one sample to the next
    r_row,
    t_row,
    middle,  # sizes of a sample, whose strides are from outer to inner
    inner,
    p_0,
    p_1,
    p_2,
    r_0,
    r_1,
    r_2,
    t_0,
    t_1,
    t_2,
    linear,  # of the divergence
    scale,
    rate,
    logistic,
    kept,  # of the type of loss
    flipped,
    hinge,
    square,
    beta,
    ratio_scale: tl.float64,
    may_undo: tl.float64,  # see `Call`, if PRESERVING
    sft_weight: tl.float64,
    offset,  # of the gap
    clip,  # infinity for none
    share: tl.float64,  # of a pair in the loss: 1 / B for a mean
    INTERLEAVED: tl.constexpr,
    REF_ERRORS: tl.constexpr,
    DRAWN: tl.constexpr,
    MIXED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    REDUCE: tl.constexpr,
    PRESERVING: tl.constexpr,
    DENSE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Form the losses of all pairs, their statistics and the coefficients of their gradients."""
    pair, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    row_w, row_l = pair_rows(pair, pairs, INTERLEAVED)
    p_w, p_l = pred + row_w.to(tl.int64) * p_row, pred + row_l.to(tl.int64) * p_row
    r_w, r_l = ref + row_w.to(tl.int64) * r_row, ref + row_l.to(tl.int64) * r_row
    first = (chunk.to(tl.int64) if WIDE else chunk) * BLOCK
    at = first + tl.arange(0, BLOCK)
    inside = at < n
    p_at = offsets(at, middle, inner, p_0, p_1, p_2, DENSE)
    r_at = offsets(at, middle, inner, r_0, r_1, r_2, DENSE)
    t_at = offsets(at, middle, inner, t_0, t_1, t_2, DENSE)
    target_w, target_l = _targets(
        draws, data, on, pair, pairs, row_w, row_l, t_row, t_at, inside, first, DRAWN, MIXED, BLOCK
    )
    miss_w, squares_w, ref_squares_w, deltas_w = _terms(
        load(p_w, p_at, inside), r_w, r_at, target_w, inside, REF_ERRORS
    )
    miss_l, squares_l, ref_squares_l, deltas_l = _terms(
        load(p_l, p_at, inside), r_l, r_at, target_l, inside, REF_ERRORS
    )
    SUMS: tl.constexpr = 1 if REF_ERRORS else 3
    start = partials + pair.to(tl.int64) * (2 * SUMS + (1 if PRESERVING else 0)) * chunks
    products = start + 2 * SUMS * chunks
    _store_sums(start + chunk, squares_w, ref_squares_w, deltas_w, chunks, REF_ERRORS)
    _store_sums(start + SUMS * chunks + chunk, squares_l, ref_squares_l, deltas_l, chunks, REF_ERRORS)
    if PRESERVING:
        tl.store(products + chunk, tl.sum((miss_w * miss_l).to(tl.float64)))

    if _arrive(counters + 1 + pair) == chunks - 1:
        tl.store(counters + 1 + pair, 0)
        error_w, ref_error_w, u_w = _side(start, ref, row_w, n, chunks, ratio_scale, REF_ERRORS)
        error_l, ref_error_l, u_l = _side(start + SUMS * chunks, ref, row_l, n, chunks, ratio_scale, REF_ERRORS)
        h_w, slope_w, past_w = link(u_w, linear, scale, rate, logistic, clip)
        h_l, slope_l, past_l = link(u_l, linear, scale, rate, logistic, clip)
        gap = h_w - h_l
        value, by_gap = pair_loss(gap - offset, beta, kept, flipped, hinge, square)
        value = tl.where(sft_weight != 0, value + (sft_weight * error_w).to(tl.float32), value)
        margin = beta * gap
        # d loss / d pred = coefficient * (pred - target); d u / d pred = -ratio_scale * 2 / n * (pred - target)
        outer = by_gap.to(tl.float64) * (ratio_scale * 2 / n) * share
        own = sft_weight * 2 / n * share
        if WEIGHTED:
            pair_weight = tl.load(weight + pair).to(tl.float32)
            value *= pair_weight
            outer *= pair_weight
            own *= pair_weight
        tl.store(losses + pair, value)
        tl.store(stats + _ERROR_W * pairs + pair, error_w)
        tl.store(stats + _ERROR_L * pairs + pair, error_l)
        tl.store(stats + _REF_ERROR_W * pairs + pair, ref_error_w)
        tl.store(stats + _REF_ERROR_L * pairs + pair, ref_error_l)
        tl.store(stats + _LOG_RATIO_W * pairs + pair, u_w)
        tl.store(stats + _LOG_RATIO_L * pairs + pair, u_l)
        tl.store(stats + _MARGIN * pairs + pair, margin)
        tl.store(stats + _CLIPPED * pairs + pair, past_w + past_l)
        to_w = -outer * slope_w
        to_w = tl.where(sft_weight != 0, to_w + own, to_w)
        tl.store(stats + _COEFFICIENT_W * pairs + pair, to_w.to(tl.float32))
        to_l = outer * slope_l
        if PRESERVING:
            product = _total(products, chunks) / n
            scale_l = loser_scale(may_undo, outer, own, slope_w, slope_l, error_w, product)
            shown = tl.where(may_undo == 0, product, scale_l).to(tl.float32)
            to_l *= tl.where(may_undo == 0, 1.0, scale_l)
        else:
            shown = 1.0
        tl.store(stats + _LOSER_SCALE * pairs + pair, shown)
        tl.store(stats + _COEFFICIENT_L * pairs + pair, to_l.to(tl.float32))

        if _arrive(counters) == pairs - 1:
            tl.store(counters, 0)
            _reduce_batch(losses, stats, loss, pairs, share, REDUCE)


@triton.jit(do_not_specialize=["pairs", "chunks", "grad_loss_stride"])
def loss_backward_kernel(
    grad_loss,  # [B] float32, `grad_loss_stride` apart
    coefficients,  # [2, B] float32: of w and of l
    pred,
    draws,  # as above
    data,
    on,
    grad,
    pairs,
    n,
    chunks,
    grad_loss_stride,
    p_row,
    t_row,
    g_row,
    middle,
    inner,
    p_0,
    p_1,
    p_2,
    t_0,
    t_1,
    t_2,
    g_0,
    g_1,
    g_2,
    INTERLEAVED: tl.constexpr,
    DRAWN: tl.constexpr,
    MIXED: tl.constexpr,
    DENSE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Form grad = grad_loss * coefficient * (pred - target) of all samples."""
    pair, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    row_w, row_l = pair_rows(pair, pairs, INTERLEAVED)
    p_w, p_l = pred + row_w.to(tl.int64) * p_row, pred + row_l.to(tl.int64) * p_row
    g_w, g_l = grad + row_w.to(tl.int64) * g_row, grad + row_l.to(tl.int64) * g_row
    upstream = tl.load(grad_loss + pair * grad_loss_stride)
    c_w, c_l = upstream * tl.load(coefficients + pair), upstream * tl.load(coefficients + pairs + pair)
    first = (chunk.to(tl.int64) if WIDE else chunk) * BLOCK
    at = first + tl.arange(0, BLOCK)
    inside = at < n
    p_at = offsets(at, middle, inner, p_0, p_1, p_2, DENSE)
    t_at = offsets(at, middle, inner, t_0, t_1, t_2, DENSE)
    g_at = offsets(at, middle, inner, g_0, g_1, g_2, DENSE)
    target_w, target_l = _targets(
        draws, data, on, pair, pairs, row_w, row_l, t_row, t_at, inside, first, DRAWN, MIXED, BLOCK
    )
    tl.store(g_w + g_at, (c_w * (load(p_w, p_at, inside) - target_w)).to(grad.dtype.element_ty), mask=inside)
    tl.store(g_l + g_at, (c_l * (load(p_l, p_at, inside) - target_l)).to(grad.dtype.element_ty), mask=inside)
