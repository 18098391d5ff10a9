"""The fused operators as differentiable functions of the policy's predictions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fdpo_fast.ops.call import Call
from fdpo_fast.ops.constants import Stat
from fdpo_fast.ops.library import loss_backward, loss_forward, normals, transformed
from fdpo_fast.ops.results import Results, coefficients_of, elements, rows_of
from fdpo_fast.ops.target import Target, as_one


class TracedLoss(torch.autograd.Function):
    """(pred, ref, *target, weight, backend, call) -> (loss, stats) of `Results`, as tracers see them."""

    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,
        ref: Tensor,
        draws: Tensor | None,
        data: Tensor | None,
        on: Tensor | None,
        weight: Tensor | None,
        backend: str,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Run the forward operator and keep what the gradient needs."""
        loss, stats, _ = loss_forward(backend, pred, ref, Target(draws, data, on), weight, call, None)
        ctx.save_for_backward(stats, pred, draws, data, on)
        ctx.call = backend, call
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return loss, stats

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """Run the backward operator."""
        _refuse_second_derivatives()
        stats, pred, *target = ctx.saved_tensors
        backend, call = ctx.call
        grad = _gradient(backend, call, grad_loss, coefficients_of(stats), pred, Target(*target))
        return grad, *(None,) * 7


class FusedLoss(torch.autograd.Function):
    """(pred, (target, results, backend, call, upstream)) -> the loss of results that were formed before.

    With an upstream gradient, that of pred was formed in the same pass, while the tensors were cached.
    `FusedLoss.upstream` has the one that the last call with this reduction saw: one, or what a trainer's mean or
    accumulation makes of it. A wrong guess costs a pass over memory; the bits are the same. On small latents much of
    a call's time is autograd's, and every argument and result of a function adds to it: there are two and one.
    """

    upstream: ClassVar[dict[str, float]] = dict.fromkeys(("mean", "sum", "none"), 1.0)

    @staticmethod
    def forward(ctx: Any, pred: Tensor, formed: tuple[Target, Results, str, Call, float | None]) -> Tensor:
        """Hand the loss over and keep what the gradient needs."""
        target, (loss, stats, grad), *call = formed
        ctx.save_for_backward(pred, *target)
        ctx.call, ctx.stats, ctx.grad = call, stats, grad  # of stats, users see other rows than the gradient needs
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:
        """Hand over the gradient that is formed already, or form it now."""
        _refuse_second_derivatives()
        # handed over once: whoever gets it may write into it
        grad, ctx.grad = ctx.grad, None
        backend, call, guess = ctx.call
        if grad is not None and not _batched(grad_loss):
            upstream = _common(grad_loss)
            if upstream == guess:
                return grad, None
            if upstream is not None:
                FusedLoss.upstream[call.reduction] = upstream
            del grad  # its memory serves the next one
        pred, *target = ctx.saved_tensors
        grad_loss, coefficients = grad_loss.resolve_neg(), coefficients_of(ctx.stats)
        return _gradient(backend, call, grad_loss, coefficients, pred, Target(*target)), None


def _gradient(
    backend: str, call: Call, grad_loss: Tensor, coefficients: Tensor, pred: Tensor, target: Target
) -> Tensor:
    """Run the backward operator; where several gradients come at once (is_grads_batched), what it says in torch."""
    interleaved = call.interleaved
    if not _batched(grad_loss, coefficients):
        return loss_backward(backend, grad_loss, coefficients, pred, target, interleaved)
    noise = None if target.draws is None else normals(backend, target.draws, elements(pred))
    of_rows = (grad_loss * coefficients).transpose(0, int(interleaved))
    miss = pred.float() - as_one(target, noise, pred, interleaved).float()
    return (of_rows.reshape(-1, *[1] * (pred.ndim - 1)) * miss).to(pred.dtype)


def _batched(*grads: Tensor) -> bool:
    """Say whether a gradient stands for several, of torch.func.vmap or of the older one behind is_grads_batched."""
    if torch.compiler.is_compiling():
        return False
    return transformed() or any(map(torch._C._functorch.is_legacy_batchedtensor, grads))


def _refuse_second_derivatives() -> None:
    """Raise where create_graph=True would give a gradient without its own: the kernels' backward is no graph."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the fused loss has first derivatives only: without create_graph=True, or backend='eager'")


def _common(grad_loss: Tensor) -> float | None:
    """Return the upstream gradient, on the CPU, if it is finite and the same for all pairs."""
    if grad_loss.numel() != 1:
        if grad_loss.numel() == 0 or not torch.equal(grad_loss, grad_loss.reshape(-1)[0].expand_as(grad_loss)):
            return None
        grad_loss = grad_loss.reshape(-1)[0]
    value: float = grad_loss.item()  # on the CPU: nothing is waited for
    return value if math.isfinite(value) else None


class FusedLogRatio(torch.autograd.Function):
    """(pred, ref, *target, backend, call) -> (log_ratio [2, B] of both sides, stats), for links that are no row."""

    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,
        ref: Tensor,
        draws: Tensor | None,
        data: Tensor | None,
        on: Tensor | None,
        backend: str,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Run the forward operator for its log-ratios."""
        _, stats, _ = loss_forward(backend, pred, ref, Target(draws, data, on), None, call, None)
        ctx.save_for_backward(pred, draws, data, on)
        ctx.call = backend, call
        log_ratio = rows_of(stats)[Stat.LOG_RATIO_W : Stat.MARGIN].clone()
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return log_ratio, stats

    @staticmethod
    def backward(ctx: Any, grad_log_ratio: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """Form the gradient for given gradients of the log-ratios."""
        _refuse_second_derivatives()
        backend, call = ctx.call
        pred, *target = ctx.saved_tensors
        # d u / d pred = -ratio_scale * 2 / N * (pred - target)
        coefficients = grad_log_ratio * (-2 * call.ratio_scale / max(elements(pred), 1))
        one = torch.ones((), dtype=torch.float32, device=coefficients.device)
        grad = _gradient(backend, call, one, coefficients, pred, Target(*target))
        return grad, *(None,) * 6
