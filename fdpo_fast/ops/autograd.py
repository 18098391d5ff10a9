"""The fused operators as differentiable functions of the policy's predictions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fdpo_fast.ops.call import Call
from fdpo_fast.ops.constants import Stat
from fdpo_fast.ops.library import loss_backward, loss_forward
from fdpo_fast.ops.results import elements


class FusedLoss(torch.autograd.Function):
    """(pred, ref, target, weight, backend, call) -> (loss, stats, accuracy) of `Results`.

    With an upstream gradient in the call the gradient is formed in the forward pass, while the tensors are cached.
    `FusedLoss.upstream` has the one that the last call with this reduction saw: one, or what a trainer's mean or
    accumulation makes of it. A wrong guess costs a pass over memory; the bits are the same.
    """

    upstream: ClassVar[dict[str, float]] = dict.fromkeys(("mean", "sum", "none"), 1.0)

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, ref: Tensor, target: Tensor, weight: Tensor | None, backend: str, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the forward operator and keep what the gradient needs."""
        loss, accuracy, stats, grad = loss_forward(backend, pred, ref, target, weight, call)
        ctx.save_for_backward(stats, pred, target)
        ctx.backend, ctx.call, ctx.grad = backend, call, grad if call.upstream is not None else None
        ctx.mark_non_differentiable(stats, accuracy)
        ctx.set_materialize_grads(False)
        return loss, stats, accuracy

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        """Hand over the gradient that is formed already, or form it now."""
        _refuse_second_derivatives()
        # handed over once: whoever gets it may write into it
        grad, ctx.grad = ctx.grad, None
        if grad is not None:
            upstream = _common(grad_loss)
            if upstream == ctx.call.upstream:
                return grad, None, None, None, None, None
            if upstream is not None:
                FusedLoss.upstream[ctx.call.reduction] = upstream
            del grad  # its memory serves the next one
        stats, pred, target = ctx.saved_tensors
        grad = loss_backward(ctx.backend, grad_loss.resolve_neg(), stats, pred, target, ctx.call.interleaved)
        return grad, None, None, None, None, None


def _refuse_second_derivatives() -> None:
    """Raise where create_graph=True would give a gradient without its own: the kernels' backward is no graph."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the fused loss has first derivatives only: without create_graph=True, or backend='eager'")


def _common(grad_loss: Tensor) -> float | None:
    """Return the upstream gradient, on the CPU, if it is finite and the same for all pairs."""
    if grad_loss.numel() == 0:
        return None
    first = grad_loss.reshape(-1)[0]
    value = float(first)
    return value if math.isfinite(value) and torch.equal(grad_loss, first.expand_as(grad_loss)) else None


class FusedLogRatio(torch.autograd.Function):
    """(pred, ref, target, backend, call) -> (log_ratio [2, B] of both sides, stats), for links that are no row."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, ref: Tensor, target: Tensor, backend: str, call: Call) -> tuple[Tensor, Tensor]:
        """Run the forward operator for its log-ratios."""
        _, _, stats, _ = loss_forward(backend, pred, ref, target, None, call)
        ctx.save_for_backward(stats, pred, target)
        ctx.backend, ctx.call = backend, call
        log_ratio = stats[Stat.LOG_RATIO_W : Stat.MARGIN].clone()
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return log_ratio, stats

    @staticmethod
    def backward(ctx: Any, grad_log_ratio: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """Form the gradient for given gradients of the log-ratios."""
        _refuse_second_derivatives()
        stats, pred, target = ctx.saved_tensors
        # d u / d pred = -ratio_scale * 2 / N * (pred - target)
        scale = -2 * ctx.call.ratio_scale / max(elements(pred), 1)
        stats = torch.cat([stats[: Stat.COEFFICIENT_W], grad_log_ratio * scale])
        grad = loss_backward(ctx.backend, stats.new_ones(()), stats, pred, target, ctx.call.interleaved)
        return grad, None, None, None, None
