"""The fused operators as differentiable functions of the policy's predictions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdpo_fast.ops.operators import loss_backward, loss_forward


class Options(NamedTuple):
    """What a call is made with beside tensors; see `ops.operators.loss_forward`."""

    backend: str
    link: tuple[float, float, float, float]
    loss_type: tuple[float, float, float, float]
    beta: float
    ratio_scale: float
    interleaved: bool


class FusedLoss(torch.autograd.Function):
    """(pred, ref, target, weight, options, reduction, form_grad) -> (loss, stats [8, B], accuracy).

    The loss is [] or, for reduction "none", [B]. With `form_grad` the gradient is formed in the forward pass, while the
    tensors are in the cache, and is right as it stands where the upstream gradient turns out to be one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,
        ref: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: Options,
        reduction: str,
        form_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses, loss, accuracy, stats, coefficient, grad = loss_forward(
            options.backend, pred, ref, target, weight, *options[1:], reduction == "mean", form_grad
        )
        ctx.save_for_backward(coefficient, pred, target)
        ctx.options, ctx.grad = options, grad if form_grad else None
        ctx.mark_non_differentiable(stats, accuracy)
        ctx.set_materialize_grads(False)
        return (losses if reduction == "none" else loss), stats, accuracy

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        coefficient, pred, target = ctx.saved_tensors
        # handed over once: whoever gets it may write into it
        grad, ctx.grad = ctx.grad, None
        if grad is None or not bool((grad_loss == 1).all()):
            options = ctx.options
            grad = loss_backward(options.backend, grad_loss, coefficient, pred, target, options.interleaved)
        return grad, None, None, None, None, None, None


class FusedLogRatio(torch.autograd.Function):
    """(pred, ref, target, options) -> (log_ratio [2, B] of both sides, stats [8, B]), for links that are no row."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, ref: Tensor, target: Tensor, options: Options) -> tuple[Tensor, Tensor]:
        stats = loss_forward(options.backend, pred, ref, target, None, *options[1:], False, False)[3]
        ctx.save_for_backward(pred, target)
        ctx.options = options
        log_ratio = stats[4:6].clone()
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return log_ratio, stats

    @staticmethod
    def backward(ctx: Any, grad_log_ratio: Tensor, _: None) -> tuple[Tensor | None, ...]:
        pred, target = ctx.saved_tensors
        options = ctx.options
        # d u / d pred = -ratio_scale * 2 / N * (pred - target)
        coefficient = grad_log_ratio * (-2 * options.ratio_scale / max(pred[0].numel(), 1))
        coefficient = (coefficient.T if options.interleaved else coefficient).reshape(-1)
        one = coefficient.new_ones(())
        return loss_backward(options.backend, one, coefficient, pred, target, options.interleaved), None, None, None
