"""Steps of the loss, with all of its options, by the formulas alone: every derivative by autograd in float64."""

from typing import NamedTuple

import torch
from torch.nn.functional import softplus

from tests.helpers.divergences import F


class Step(NamedTuple):
    """The losses of pairs [B], the gradient of their sum as it is scaled, and the scale of each pair [B].

    slack: [B], by how much 1 / scale moves, at most, where every term of <g_w, g_l> moves by its own size: the terms
    may cancel, and rounding is relative to them. losers: [B], the rows of the dispreferred samples.
    """

    losses: torch.Tensor
    grad: torch.Tensor
    scale: torch.Tensor
    slack: torch.Tensor
    losers: torch.Tensor


def loss_of(gap, beta, loss_type="sigmoid", e=0.0):
    """The loss of a pair, as its authors write it; e: the probability that a label is wrong."""
    z = beta * gap
    return {
        "sigmoid": lambda: (1 - e) * softplus(-z) + e * softplus(z),
        "robust": lambda: ((1 - e) * softplus(-z) - e * softplus(z)) / (1 - 2 * e),
        "hinge": lambda: torch.relu(1 - z),
        "ipo": lambda: (gap - 1 / (2 * beta)) ** 2,
    }[loss_type]()


def link_of(divergence, clip=None):
    """u -> f'(e^u) of a named divergence, by autograd of f; a callable stands for itself. Beyond clip its tangents."""

    def named(u):
        (slope,) = torch.autograd.grad(F[divergence](x := u.exp()).sum(), x, create_graph=True)
        return slope

    link = divergence if callable(divergence) else named

    def straight(u):  # inside too: value and slope are those of the link
        at = u.detach().clamp(-clip, clip).requires_grad_()
        value = link(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
        return value.detach() + slope * (u - at.detach())

    return link if clip is None else straight


def preserved(
    pred,
    ref,
    target,
    mu,
    divergence="jensen_shannon",
    beta=2.0,
    ratio_scale=50.0,
    weight=None,
    layout="halves",
    loss_type="sigmoid",
    label_smoothing=0.0,
    sft_weight=0.0,
    margin=0.0,
    clip_log_ratio=None,
):
    """A step of rows [2B, n] whose target is a tensor; ref: predictions, or errors [2B]. mu None: nothing is scaled."""
    order = torch.arange(len(pred)).view(2, -1) if layout == "halves" else torch.arange(len(pred)).view(-1, 2).T
    p, r, t = (x.double()[order] for x in (pred, ref, target))  # [2, B, n]
    p.requires_grad_()
    error = (p - t).flatten(2).square().mean(2)
    ref_error = r if r.ndim == 2 else (r - t).flatten(2).square().mean(2)
    (g,) = torch.autograd.grad(error.sum(), p)
    error = error.detach().requires_grad_()
    u, link = ratio_scale * (ref_error - error), link_of(divergence, clip_log_ratio)
    losses = loss_of(link(u[0]) - link(u[1]) - margin / beta, beta, loss_type, label_smoothing) + sft_weight * error[0]
    losses = losses if weight is None else losses * weight.double()
    (by_error,) = torch.autograd.grad(losses.sum(), error)
    c_w, c_l = by_error[0], -by_error[1]
    (g_w, g_l), scale, slack = g.flatten(2), torch.ones_like(c_w), torch.zeros_like(c_w)
    for pair in range(len(c_w)):
        both = g_w[pair] * g_l[pair]
        if mu is None or c_w[pair] < 0 or c_l[pair] <= 0 or not both.any():
            continue
        most = (1 - mu) * c_w[pair] * g_w[pair].square().sum() / c_l[pair]
        slack[pair] = both.abs().sum() / most
        if both.sum() > 0:
            scale[pair] = (most / both.sum()).clamp(0, 1)
    per_row = torch.stack([c_w, -c_l * scale])
    grad = torch.empty_like(pred, dtype=torch.float64)
    grad[order] = per_row.view(*per_row.shape, *[1] * (p.ndim - 2)) * g
    return Step(losses.detach(), grad, scale, slack, order[1])


def alike(pairs, shape, dtypes=(torch.float32,) * 3, seed=0, likeness=1.3, spread=0.3):
    """(pred, ref, target) whose two samples of a pair, in halves, miss the target in much the same direction.

    likeness: the share of the preferred sample's miss in the dispreferred one's, negative for one the other way.
    """
    generator = torch.Generator().manual_seed(seed)
    target, r, miss = (torch.randn(2 * pairs, *shape, generator=generator, dtype=torch.float32) for _ in range(3))
    miss[pairs:] = likeness * miss[:pairs] + 0.3 * miss[pairs:]
    pred = target + spread * miss
    values = (pred, pred + 0.1 * spread * r, target)
    return tuple(x.to(dtype) for x, dtype in zip(values, dtypes, strict=True))
