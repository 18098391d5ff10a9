r"""Steps that keep the preferred sample: the gradient of the dispreferred one is scaled where it would undo them.

After Diffusion-SDPO (Fu et al., arXiv 2511.03317), there for reverse KL and a batch as a whole, here for any link and
each pair by itself. In the space of outputs the gradient of a sample's error is g = 2 (p - t) / N, and a step of
descent goes along c_w g_w - c_l g_l, with what the loss gives each side, up to a factor that they share:

    c_w = -L'(gap) h'(u_w) + v w / r,   c_l = -L'(gap) h'(u_l)

L: the loss of the pair, times its weight v. w: `sft_weight`, whose share in the preferred sample's gradient is that of
its error itself and not of a log-ratio, which is r = `ratio_scale` times as much.

To first order it takes c_w |g_w|^2 - c_l <g_w, g_l> off the error of the preferred sample, and at least mu c_w |g_w|^2
where c_l is multiplied by

    lambda = min(1, (1 - mu) c_w |g_w|^2 / (c_l <g_w, g_l>))     if c_w >= 0, c_l > 0 and <g_w, g_l> > 0, else 1

A coefficient of another sign is of a step that takes the pair for one whose label is wrong, or whose margin is too
large ("ipo"; "robust" and smoothed labels; a negative weight): there is no preferred sample to keep, and lambda is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fdpo_fast.loss.clipping import slope_of
from fdpo_fast.loss.divergences import Divergence
from fdpo_fast.loss.eager import LossType

if TYPE_CHECKING:
    from fdpo_fast.loss.options import LossOptions


@torch.no_grad()
def loser_scale(
    options: LossOptions,
    log_ratio_w: Tensor,
    log_ratio_l: Tensor,
    weight: Tensor | None,
    error_w: Tensor,
    product: Tensor,
) -> Tensor:
    """Return lambda of each pair, [B], for options with `winner_preserving`; in float64, where the device has it.

    log_ratio_w, log_ratio_l, weight, error_w: [B], detached. product: [B], <g_w, g_l> N / 4, where |g_w|^2 N / 4 is the
    error.
    """
    assert options.winner_preserving is not None
    wide = log_ratio_w.dtype if log_ratio_w.device.type == "mps" else torch.float64
    sides = [log_ratio_w.detach(), log_ratio_l.detach()]
    if isinstance(options.link, Divergence):
        sides = [side.to(wide) for side in sides]
    slope_w, slope_l = [slope_of(options.link, side).to(wide) for side in sides]
    h_w, h_l = [options.link(side) for side in sides]
    by_gap = LossType.slope(options.of_pair, (h_w - h_l).to(wide) - options.offset, float(options.beta))
    weight = torch.ones_like(by_gap) if weight is None else weight.to(wide)
    by_gap = by_gap * weight
    c_w, c_l = -by_gap * slope_w + weight * (float(options.sft_weight) / float(options.ratio_scale)), -by_gap * slope_l
    most = (1 - float(options.winner_preserving)) * c_w * error_w.to(wide)
    asked = c_l * product.to(wide)
    return torch.where((c_w >= 0) & (c_l > 0) & (most < asked), most / asked, torch.ones_like(asked))


def scaled(u: Tensor, scale: Tensor) -> Tensor:
    """Return u whose gradient is multiplied by scale, a constant; shape and dtype of u, [B].

    All derivatives are those of sg(u) + scale (u - sg(u)), sg a stopped gradient: a second one sees no derivative of
    scale either.
    """
    # torch.compile takes no function that has a forward mode
    function = _Scaled if torch.compiler.is_compiling() else _ForwardScaled
    out: Tensor = function.apply(u, scale.to(u.dtype))
    return out


class _Scaled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, scale: Tensor) -> Tensor:
        """Return the value as it is."""
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the factor."""
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Multiply by the factor."""
        return grad * ctx.saved_tensors[0], None


class _ForwardScaled(_Scaled):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        """Multiply by the factor."""
        return tangent * ctx.saved_tensors[0]
