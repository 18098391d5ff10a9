"""Random calls of the loss beside float64, with a bound on every number that follows from how it is formed.

eps = 2^-24, a rounding of float32. The log-ratio u of a sample is off by at most

    b = ratio_scale * eps * 16 mean(|p - r| (|p - t| + |r - t|)) + 2 eps |u|
    b = ratio_scale * eps * 3 mean((p - t)^2) + 2 eps |u|, with reference errors

and what is formed of it by as much as it moves while its log-ratios go from u - b to u + b, and 16 eps of its terms.
A drawn noise e is off by two units in the last place, 4 eps |e|, and a target that is mixed of it and data by
d = 6 eps (|on_noise e| + |on_data x_0|): b is larger by ratio_scale 2 mean(|p - r| d), with reference errors by
ratio_scale mean((2 |p - t| + d) d).

Where the preferred sample's error E is preserved, the dispreferred gradient is scaled by min(1, (1 - mu) h'(u_w) E
/ (h'(u_l) X)), which is off by as much as it moves while E and X = mean((p_w - t_w)(p_l - t_l)) go over

    E +- 16 eps E + mean((2 |p_w - t_w| + d_w) d_w)
    X +- 16 eps mean(|p_w - t_w| |p_l - t_l|) + mean(|p_w - t_w| d_l + |p_l - t_l| d_w + d_w d_l)

With a weight w of E itself h'(u_w) becomes h'(u_w) + w / (ratio_scale |L'|), L' the derivative of the loss by its gap,
and the loss is off by w times as much as E. A log-ratio's bound of clipping is off by 2 eps of itself, and a target
margin m by 4 eps m.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fdpo_fast import DIVERGENCES, Target, alpha, draws, fdpo_loss
from fdpo_fast.loss.eager import LOSS_TYPES, LossType
from fdpo_fast.noise import eager_normals
from tests.helpers.fuzz_steps import DTYPES

EPS = 2.0**-24
LARGEST, TINY = torch.finfo(torch.float32).max, 1e-37
LOST = 1e-30
"""A derivative that may be zero in float32: whoever has no gradient is not scaled."""
UNITS = 16

DRAWN_OFF, MIXED_OFF = 4 * EPS, 6 * EPS

SHARES: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "epsilon": lambda angle: (np.ones_like(angle), np.zeros_like(angle)),
    "v": lambda angle: (np.cos(angle), -np.sin(angle)),
    "x_0": lambda angle: (np.zeros_like(angle), np.ones_like(angle)),
    "flow": lambda angle: (np.ones_like(angle), -np.ones_like(angle)),
}
"""What noise and data are multiplied by in a mixed target, from an angle for each pair."""
FORMS = ("drawn", *SHARES)


class Around(NamedTuple):
    """A number and how far it may be off."""

    value: Tensor
    off: Tensor

    def misses(self, got: Tensor, largest: float = LARGEST) -> Tensor:
        """Where what was got is further off, or infinite where the number is far from the largest of its dtype."""
        got = got.double()
        inside = (got - self.value).abs() <= self.off + UNITS * EPS * self.value.abs() + TINY
        above = (got == math.inf) & (self.value + self.off > largest)
        below = (got == -math.inf) & (self.value - self.off < -largest)
        return ~(inside | above | below)


class Call(NamedTuple):
    pred: Tensor
    ref: Tensor
    target: Target
    options: dict[str, Any]
    whole: Around
    """The target as one tensor, and how far a backend may be off it."""


def call(seed: int) -> Call:
    """The call of a seed: dtypes, sizes, what the target is, how near the policy is to its reference, and options."""
    draw = np.random.default_rng(seed)
    pairs, shape = int(draw.integers(1, 7)), ((3,), (4, 5, 7), (127,), (1,), (4, 16, 16), (1025,))[draw.integers(6)]
    dtypes = [DTYPES[draw.integers(3)] for _ in range(3)]
    size = 10.0 ** draw.uniform(-5, 3)

    def values(spread: float) -> np.ndarray:
        return draw.standard_normal((2 * pairs, *shape)) * spread

    data = _rounded(values(size), dtypes[2])
    form = FORMS[draw.integers(len(FORMS))] if draw.random() < 0.5 else None
    target, whole = _mixed(draw, form, data) if form else (Target(data=data), Around(data.double(), torch.zeros(1)))
    ref = whole.value.numpy() + values(size * 10.0 ** draw.uniform(-4, 1))
    pred = ref + values(size * 10.0 ** draw.uniform(-8, 1))
    if draw.random() < 0.05:
        pred = ref
    mu, shift = _preserving(seed, pred - whole.value.numpy())
    pred, ref = (_rounded(x + shift, dtype) for x, dtype in zip((pred, ref), dtypes, strict=False))
    if draw.random() < 0.5:
        ref = (ref.double() - whole.value).square().flatten(1).mean(1)
    names = [*DIVERGENCES, "of its own"]
    name = names[draw.integers(len(names))]
    kind = list(LOSS_TYPES)[draw.integers(len(LOSS_TYPES))]
    options = {
        "divergence": alpha(float(draw.uniform(0.01, 0.99))) if name == "of its own" else name,
        "beta": float(10.0 ** draw.uniform(-3, 4)),
        "ratio_scale": float(10.0 ** draw.uniform(-2, 5)),
        "loss_type": kind,
        "label_smoothing": float(draw.choice([0.0, 0.1, 0.4])) if kind in ("sigmoid", "robust") else 0.0,
        "reduction": ("mean", "sum", "none")[draw.integers(3)],
        "winner_preserving": mu,
    } | _aids(seed)
    return Call(pred, ref, target, options, whole)


def _preserving(seed: int, miss: np.ndarray) -> tuple[float | None, np.ndarray]:
    """The option, of three calls in five, and what makes the dispreferred predictions miss as the preferred ones do."""
    draw, shift = np.random.default_rng((seed, 1)), np.zeros_like(miss)
    mu = (None, None, 0.0, float(draw.uniform(0, 1)), 1 - float(2.0 ** -draw.integers(1, 40)))[draw.integers(5)]
    if mu is not None and draw.random() < 0.6:
        pairs = len(miss) // 2
        shift[pairs:] = draw.uniform(0.1, 3) * miss[:pairs] + 10.0 ** draw.uniform(-4, 0) * miss[pairs:] - miss[pairs:]
    return mu, shift


def _aids(seed: int) -> dict[str, float | None]:
    """The options that help a loss along, each of them off in half of the calls."""
    draw = np.random.default_rng((seed, 2))

    def one(low: float, high: float, off: float | None) -> float | None:
        value = float(10.0 ** draw.uniform(low, high))
        return value if draw.random() < 0.5 else off

    return {"sft_weight": one(-3, 5, 0.0), "margin": one(-3, 2, 0.0), "clip_log_ratio": one(-3, 1.5, None)}


def _rounded(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    ends = torch.finfo(torch.float16).max
    return torch.from_numpy(values).clamp(-ends, ends).to(dtype)


def _mixed(draw: np.random.Generator, form: str, data: Tensor) -> tuple[Target, Around]:
    """A target of drawn noise, alone or with data, and what it stands for."""
    pairs, each = len(data) // 2, (-1, *[1] * (data.ndim - 1))
    drawn = draws(int(draw.integers(2**63)), torch.from_numpy(draw.integers(2**56, size=pairs)), int(draw.integers(9)))
    noise = eager_normals(drawn, data[0].numel()).double().repeat(2, 1).view(data.shape)
    if form == "drawn":
        return Target(draws=drawn), Around(noise, DRAWN_OFF * noise.abs())
    shares = SHARES[form](draw.uniform(0, np.pi / 2, pairs))
    on = torch.from_numpy(np.stack(shares)).float()
    of_noise, of_data = (row.double().repeat(2).view(each) * x for row, x in zip(on, (noise, data), strict=True))
    return Target(drawn, data, on), Around(of_noise + of_data, MIXED_OFF * (of_noise.abs() + of_data.abs()))


def log_ratios(of: Call) -> Around:
    """In float64, [2, B], of the tensors as they are."""
    p, r, t = (x.double().flatten(1) if x.ndim > 1 else x for x in (of.pred, of.ref, of.whole.value))
    scale, d = of.options["ratio_scale"], of.whole.off.expand_as(of.pred).flatten(1)
    if r.ndim == 1:
        error = (p - t).square().mean(1)
        u, off = -scale * (error - r), 3 * EPS * error + ((2 * (p - t).abs() + d) * d).mean(1)
    else:
        u = -scale * ((p - r) * ((p - t) + (r - t))).mean(1)
        off = ((p - r).abs() * (16 * EPS * ((p - t).abs() + (r - t).abs()) + 2 * d)).mean(1)
    return Around(u.view(2, -1), (scale * off + 2 * EPS * u.abs()).view(2, -1))


def corners(u: Around) -> list[Tensor]:
    """The log-ratios, and the four that are furthest off."""
    signs = [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    return [u.value + u.off * torch.tensor(sign, dtype=torch.float64)[:, None] for sign in signs]


def around(values: list[Tensor], terms: Tensor) -> Around:
    """A number by its values at the corners, and what its terms' roundings make of it."""
    off = torch.stack([(value - values[0]).abs() for value in values[1:]]).amax(0)
    return Around(values[0], off + UNITS * EPS * terms)


def products(of: Call) -> list[tuple[Tensor, Tensor]]:
    """E and X of each pair, [B], and the ends that make the scale smallest and largest."""
    miss, d = ((x.expand_as(of.pred).double().flatten(1)).view(2, -1, of.pred[0].numel())
               for x in (of.pred.double() - of.whole.value, of.whole.off))  # fmt: skip
    error, both = miss[0].square().mean(1), (miss[0] * miss[1]).mean(1)
    error_off = UNITS * EPS * error + ((2 * miss[0].abs() + d[0]) * d[0]).mean(1)
    both_off = UNITS * EPS * (miss[0] * miss[1]).abs().mean(1)
    both_off += (miss[0].abs() * d[1] + miss[1].abs() * d[0] + d[0] * d[1]).mean(1)
    return [(error, both), *(((error + s * error_off).clamp(min=0), both - s * both_off) for s in (1, -1))]


def scale_of(mu: float | None, by_u: Tensor, own: float, error: Tensor, both: Tensor) -> Tensor:
    """The scale on the dispreferred gradient, [B], of derivatives by the log-ratios, [2, B], and of a push besides."""
    if mu is None:
        return torch.ones_like(error)
    most, asked = (1 - mu) * (own - by_u[0]) * error, by_u[1] * both
    return torch.where((by_u[1] > 0) & (most < asked), most / asked, 1.0)


def links(of: Call) -> list[tuple[Tensor, Tensor]]:
    """The links and their slopes, [2, B] each, at the corners of log-ratios and of where these are clipped."""
    name, clip = of.options["divergence"], of.options["clip_log_ratio"]
    link, found = DIVERGENCES[name] if isinstance(name, str) else name, []
    for end in (math.inf,) if clip is None else (clip, clip * (1 + 2 * EPS), clip * (1 - 2 * EPS)):
        for u in corners(log_ratios(of)):
            inside = u.clamp(-end, end)
            slope = link.slope(inside)
            found.append((link(inside) + slope * (u - inside), slope))
    return found


class Exact(NamedTuple):
    margin: Around
    loss: Around
    by_log_ratio: Around
    loser_scale: Around


def exact(of: Call) -> Exact:
    """Margins [B], losses [B] and their derivatives by the log-ratios [2, B]."""
    options = of.options
    kind, beta = LOSS_TYPES[options["loss_type"]](options["label_smoothing"]), options["beta"]
    h, slopes = zip(*links(of), strict=True)
    gaps = [both[0] - both[1] for both in h]
    sizes = h[0].abs().sum(0)
    margin = around([beta * gap for gap in gaps], beta * sizes)
    # float32 keeps the margin, not the gap: the loss may move as far as that is off
    off = margin.off + 4 * EPS * options["margin"]
    spots = [margin.value - options["margin"] + s * off for s in (0, 1, -1)]
    values, terms = zip(*(losses(kind, z, beta) for z in spots), strict=True)
    outer, outer_terms = zip(*(by_margin(kind, z, beta) for z in spots), strict=True)
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    own, places, scales, combined = options["sft_weight"] / options["ratio_scale"], products(of), [], []
    for by, slope, (error, both) in product(outer, slopes, places):
        by_u = beta * by * slope * signs
        scales.append(scale_of(options["winner_preserving"], by_u, own, error, both))
        combined.append(torch.stack([by_u[0] - own, by_u[1] * scales[-1]]))
    terms_of_slope = beta * outer_terms[0] * slopes[0] + torch.tensor([[own], [0.0]], dtype=torch.float64)
    errors = [options["sft_weight"] * error for error, _ in places]
    own_loss = around(errors, errors[0])
    scale = around(scales, torch.zeros_like(scales[0]))
    lost = (torch.stack([beta * outer[0], *slopes[0]]).abs() < LOST).any(0)
    scale = scale._replace(off=scale.off.masked_fill(lost, 1.0))
    loss = around(list(values), terms[0])
    loss = Around(loss.value + own_loss.value, loss.off + own_loss.off)
    return Exact(margin, loss, around(combined, terms_of_slope), scale)


def losses(kind: LossType, z: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The losses of margins, and the sizes of their terms."""
    parts = [kind.kept * torch.logaddexp(-z, 0 * z), kind.flipped * torch.logaddexp(z, 0 * z)]
    parts += [kind.hinge * (1 - z).clamp(min=0), kind.square * (z / beta - 1 / (2 * beta)).square()]
    sizes = kind.square * (z / beta).abs() * ((z / beta).abs() + 1 / beta) + kind.hinge * (1 + z.abs())
    return sum(parts), sum(part.abs() for part in parts) + sizes


def by_margin(kind: LossType, z: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The derivatives of the losses by their margins, and the sizes of their terms."""
    parts = [-kind.kept * torch.sigmoid(-z), kind.flipped * torch.sigmoid(z), -kind.hinge * (z < 1).double()]
    parts.append(2 * kind.square * (z / beta - 1 / (2 * beta)) / beta)
    return sum(parts), sum(part.abs() for part in parts) + 2 * kind.square * (z.abs() / beta + 1 / beta) / beta


def misses(of: Call, backend: str, device: str = "cpu") -> list[str]:
    """What a backend gives beyond its bound, in words."""
    pred = of.pred.to(device).requires_grad_()
    target = Target(*(None if part is None else part.to(device) for part in of.target))
    loss, stats = fdpo_loss(pred, of.ref.to(device), target, backend=backend, **of.options)
    (grad,) = torch.autograd.grad(loss.sum(), pred)
    want, u = exact(of), log_ratios(of)
    pairs, reduction = want.loss.value.numel(), of.options["reduction"]
    share = 1 / pairs if reduction == "mean" else 1.0
    reduced = want.loss
    if reduction != "none":
        off = (reduced.off + UNITS * EPS * reduced.value.abs()).sum()
        if (reduced.value + reduced.off > LARGEST).any():
            off = torch.full((), math.inf, dtype=torch.float64)  # a pair's loss is a float32
        reduced = Around(reduced.value.sum() * share, off * share)
    # d u / d pred = -ratio_scale 2 / n (pred - target)
    n = of.pred[0].numel()
    factor = -of.options["ratio_scale"] * 2 / n * share
    miss = (of.pred.double() - of.whole.value).flatten(1)
    miss_off = of.whole.off.expand_as(of.pred).flatten(1)
    by_u = Around(*(x.flatten()[:, None] * factor for x in want.by_log_ratio))
    info = torch.finfo(of.pred.dtype)
    value = by_u.value * miss
    off = (by_u.off * miss).abs() + (by_u.value.abs() + by_u.off.abs()) * miss_off
    off += (UNITS * EPS + info.eps) * (value.abs() + off) + info.smallest_normal * info.eps
    found = {
        "loss": reduced.misses(loss.detach().cpu()),
        "margin": want.margin.misses(stats.margin.cpu()),
        "log-ratio": Around(*(x.flatten() for x in u)).misses(torch.cat([stats.log_ratio_w, stats.log_ratio_l]).cpu()),
        "loser scale": want.loser_scale.misses(stats.loser_scale.cpu()),
        "gradient": Around(value, off).misses(grad.cpu().flatten(1), info.max),
    }
    signs = (stats.margin.cpu().sign() * want.margin.value.sign() < 0) & (want.margin.value.abs() > want.margin.off)
    found["sign of a margin"] = signs
    return [f"{where.sum()} of {where.numel()} {name}" for name, where in found.items() if where.any()]
