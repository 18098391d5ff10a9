"""The optimizer in plain torch: what every kernel must compute, and the backend for devices without one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fdpo_fast.noise import draws, words
from fdpo_fast.ops.constants import STATE_BLOCK, Stream
from fdpo_fast.optim.codebook import dynamic_map
from fdpo_fast.optim.low_byte import joined, split
from fdpo_fast.optim.update import Clip, Rates, Updates

_ZERO = 127  # the code of m = 0


def decode(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """Decode uint8 codes of any shape, with absmax [blocks], to states in float32."""
    values = dynamic_map(signed).decoded.to(codes.device)[codes.flatten().int()]
    return (values * absmax.repeat_interleave(STATE_BLOCK)[: codes.numel()]).reshape(codes.shape)


def encode(states: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Encode states to (codes, absmax [blocks]): the nearest values of the map, but for its lower end, by its lines.

    What is not a number gets the code of 0; blocks whose largest magnitude is denormal are zeros.
    """
    flat = states.float().flatten().nan_to_num(nan=0.0)
    blocks = pad(flat, (0, -flat.numel() % STATE_BLOCK)).reshape(-1, STATE_BLOCK)
    absmax = blocks.abs().amax(1)
    absmax = torch.where(absmax < torch.finfo(torch.float32).tiny, 0.0, absmax)
    scale = torch.where(absmax > 0, absmax.reciprocal(), 0.0)
    x = (blocks * scale[:, None]).flatten()[: flat.numel()]
    of = dynamic_map(signed)
    threshold, start, rise, last = (line.to(x.device) for line in (of.threshold, of.start, of.rise, of.last))
    segment = torch.bucketize(x.abs(), threshold[:-1], right=True)
    codes = torch.minimum(start[segment] + rise[segment] * x.abs(), last[segment]).int()
    if signed:
        codes = torch.where(x < 0, _ZERO - codes, _ZERO + codes).clamp_min(0)
    return codes.to(torch.uint8).reshape(states.shape), absmax


def random_bits(
    seed: int, index: int, step: int, first: int, count: int, device: torch.device, bits: int = 16
) -> Tensor:
    """Return 16 or 8 random bits for each of `count` elements from `first` on (a multiple of 128 / bits), as int32.

    Words of the stream `Stream.ROUNDING` with the parameter's index for pair_id and the optimizer's step for visit;
    each gives two elements their half-words, or four their bytes, the lowest first: 128 bits are eight elements, or
    sixteen.
    """
    key = draws(seed, index, step, device=device)
    together = 128 // bits
    stream = words(key, Stream.ROUNDING, -(-count // together), first // together)[0]
    parts = [stream >> shift & (1 << bits) - 1 for shift in range(0, 32, bits)]
    return torch.stack(parts, 1).flatten()[:count].int()


def round_randomly(values: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to one of the two neighbours in bfloat16 or float16, the nearer one the more probably.

    bits: 16 random ones each, int32. What has no neighbours (infinities, NaN, beyond float16) is rounded to nearest.
    """
    if dtype == torch.bfloat16:
        special = ~values.isfinite()
        moved = values.view(torch.int32) + torch.where(special, 0, bits)
        return (moved & -65536).view(torch.float32).to(dtype)
    magnitude = values.abs()
    small = magnitude < 2.0**-14  # whose step is 2^-24
    fixed = torch.where(small, magnitude * 2.0**40, 0.0).to(torch.int32) + bits >> 16
    kept = (magnitude.view(torch.int32) + (bits >> 3) & -8192).view(torch.float32)
    rounded = torch.where(small, fixed.float() * 2.0**-24, kept).copysign(values).to(dtype)
    return torch.where(magnitude < 65536, rounded, values.to(dtype))


def change(rates: Rates, weights: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """Return what a step takes from weights, by the moments behind its gradient; all in float32."""
    root = v.double().sqrt().float()  # torch's of float32 may be MKL's, which is an ulp off here and there
    return rates.decay * weights + rates.step_size * m / (root + rates.eps)


def step(updates: Updates, clip: Clip | None = None) -> None:
    """Step each parameter once, in place."""
    if clip:
        clip.gradients(updates)
    for u in updates.rows():
        rule, g = u.rule, u.grad.float()
        rates = rule.rates
        m = rates.beta1 * u.m if u.absmax_m is None else decode(u.m, rates.beta1 * u.absmax_m, True)
        v = rates.beta2 * u.v if u.absmax_v is None else decode(u.v, rates.beta2 * u.absmax_v, False)
        m = m + rates.one_minus_beta1 * g
        v = v + rates.one_minus_beta2 * g * g
        p = u.data.float() if u.low is None else joined(u.data, u.low)
        moved = p - change(rates, p, m, v)
        bits = None
        if rule.stochastic and u.data.dtype != torch.float32:
            place = rule.seed, u.number, rule.step, rule.first, u.data.numel(), u.data.device
            bits = random_bits(*place, bits=16 if u.low is None else 8).reshape(moved.shape)
        if u.low is not None:
            weights, low = split(moved, bits)
            u.data.copy_(weights)
            u.low.copy_(low)
        else:
            u.data.copy_(moved if bits is None else round_randomly(moved, bits, u.data.dtype))
        if u.copy is not None:
            u.copy.copy_(moved)
        # what float32 cannot hold is forgotten: other codes of its block would be lost, and 0 times it is no number
        held = v <= torch.finfo(torch.float32).max
        m, v = torch.where(held, m, 0.0), torch.where(held, v, 0.0)
        for state, absmax, new, signed in ((u.m, u.absmax_m, m, True), (u.v, u.absmax_v, v, False)):
            if absmax is None:
                state.copy_(new)
            else:
                codes, largest = encode(new, signed)
                state.copy_(codes)
                absmax.copy_(largest)
