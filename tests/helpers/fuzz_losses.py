"""Random calls of the loss beside float64, with a bound on every number that follows from how it is formed.

eps = 2^-24, a rounding of float32. The log-ratio u of a sample is off by at most

    b = ratio_scale * eps * 16 mean(|p - r| (|p - t| + |r - t|)) + 2 eps |u|
    b = ratio_scale * eps * 3 mean((p - t)^2) + 2 eps |u|, with reference errors

and what is formed of it by as much as it moves while its log-ratios go from u - b to u + b, and 16 eps of its terms.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fdpo_fast import DIVERGENCES, alpha, fdpo_loss
from fdpo_fast.loss.eager import LOSS_TYPES, LossType
from tests.helpers.fuzz_steps import DTYPES

EPS = 2.0**-24
LARGEST, TINY = torch.finfo(torch.float32).max, 1e-37
UNITS = 16


class Call(NamedTuple):
    pred: Tensor
    ref: Tensor
    target: Tensor
    options: dict[str, Any]


def call(seed: int) -> Call:
    """The call of a seed: dtypes, sizes, how near the policy is to its reference, and the loss's options."""
    draw = np.random.default_rng(seed)
    pairs, shape = int(draw.integers(1, 7)), ((3,), (4, 5, 7), (127,), (1,), (4, 16, 16), (1025,))[draw.integers(6)]
    dtypes = [DTYPES[draw.integers(3)] for _ in range(3)]
    size = 10.0 ** draw.uniform(-5, 3)

    def values(spread: float) -> np.ndarray:
        return draw.standard_normal((2 * pairs, *shape)) * spread

    target = values(size)
    ref = target + values(size * 10.0 ** draw.uniform(-4, 1))
    pred = ref + values(size * 10.0 ** draw.uniform(-8, 1))
    if draw.random() < 0.05:
        pred = ref
    ends = torch.finfo(torch.float16).max
    tensors = [
        torch.from_numpy(x).clamp(-ends, ends).to(dtype) for x, dtype in zip((pred, ref, target), dtypes, strict=True)
    ]
    if draw.random() < 0.5:
        tensors[1] = (tensors[1].double() - tensors[2].double()).square().flatten(1).mean(1)
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
    }
    return Call(*tensors, options)


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


def log_ratios(of: Call) -> Around:
    """In float64, [2, B], of the tensors as they are."""
    p, r, t = (x.double().flatten(1) if x.ndim > 1 else x for x in of[:3])
    scale = of.options["ratio_scale"]
    if r.ndim == 1:
        error = (p - t).square().mean(1)
        u, off = -scale * (error - r), 3 * error
    else:
        u = -scale * ((p - r) * ((p - t) + (r - t))).mean(1)
        off = 16 * ((p - r).abs() * ((p - t).abs() + (r - t).abs())).mean(1)
    return Around(u.view(2, -1), (scale * EPS * off + 2 * EPS * u.abs()).view(2, -1))


def corners(u: Around) -> list[Tensor]:
    """The log-ratios, and the four that are furthest off."""
    signs = [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    return [u.value + u.off * torch.tensor(sign, dtype=torch.float64)[:, None] for sign in signs]


def around(values: list[Tensor], terms: Tensor) -> Around:
    """A number by its values at the corners, and what its terms' roundings make of it."""
    off = torch.stack([(value - values[0]).abs() for value in values[1:]]).amax(0)
    return Around(values[0], off + UNITS * EPS * terms)


class Exact(NamedTuple):
    margin: Around
    loss: Around
    by_log_ratio: Around


def exact(of: Call) -> Exact:
    """Margins [B], losses [B] and their derivatives by the log-ratios [2, B]."""
    options = of.options
    link = options["divergence"] if not isinstance(options["divergence"], str) else DIVERGENCES[options["divergence"]]
    kind, beta = LOSS_TYPES[options["loss_type"]](options["label_smoothing"]), options["beta"]
    places = corners(log_ratios(of))
    h = [link(u) for u in places]
    slopes = [link.slope(u) for u in places]
    gaps = [both[0] - both[1] for both in h]
    sizes = h[0].abs().sum(0)
    margin = around([beta * gap for gap in gaps], beta * sizes)
    # float32 keeps the margin, not the gap: the loss may move as far as that is off
    spots = [margin.value, margin.value + margin.off, margin.value - margin.off]
    values, terms = zip(*(losses(kind, z, beta) for z in spots), strict=True)
    outer, outer_terms = zip(*(by_margin(kind, z, beta) for z in spots), strict=True)
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    combined = [beta * by * slope * signs for by in outer for slope in slopes]
    terms_of_slope = beta * outer_terms[0] * slopes[0]
    return Exact(margin, around(list(values), terms[0]), around(combined, terms_of_slope))


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
    loss, stats = fdpo_loss(pred, of.ref.to(device), of.target.to(device), backend=backend, **of.options)
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
    miss = (of.pred.double() - of.target.double()).flatten(1)
    by_u = Around(*(x.flatten()[:, None] * factor for x in want.by_log_ratio))
    info = torch.finfo(of.pred.dtype)
    value = by_u.value * miss
    off = (by_u.off * miss).abs()
    off += (UNITS * EPS + info.eps) * (value.abs() + off) + info.smallest_normal * info.eps
    found = {
        "loss": reduced.misses(loss.detach().cpu()),
        "margin": want.margin.misses(stats.margin.cpu()),
        "log-ratio": Around(*(x.flatten() for x in u)).misses(torch.cat([stats.log_ratio_w, stats.log_ratio_l]).cpu()),
        "gradient": Around(value, off).misses(grad.cpu().flatten(1), info.max),
    }
    signs = (stats.margin.cpu().sign() * want.margin.value.sign() < 0) & (want.margin.value.abs() > want.margin.off)
    found["sign of a margin"] = signs
    return [f"{where.sum()} of {where.numel()} {name}" for name, where in found.items() if where.any()]
