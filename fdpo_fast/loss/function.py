"""The drop-in: `fdpo_loss` and its module form `FDPOLoss`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from fdpo_fast import noise
from fdpo_fast.loss.checks import backend_for
from fdpo_fast.loss.divergences import Divergence
from fdpo_fast.loss.eager import denoising_errors, product_of_misses
from fdpo_fast.loss.options import REDUCTIONS, LossOptions, PairOptions, spelled_out
from fdpo_fast.loss.preserving import loser_scale, scaled
from fdpo_fast.loss.stats import LossStats, named
from fdpo_fast.ops.autograd import FusedLogRatio, FusedLoss, TracedLoss
from fdpo_fast.ops.constants import Stat
from fdpo_fast.ops.library import BACKENDS, traced, transformed
from fdpo_fast.ops.pairs import LAYOUTS
from fdpo_fast.ops.results import elements, rows_of
from fdpo_fast.ops.target import Target, as_one

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fdpo_fast.loss.options import Link, LossArguments, PairArguments


@spelled_out(LossOptions)
def fdpo_loss(
    pred: Tensor,
    ref: Tensor,
    target: Tensor | Target,
    *,
    divergence: Link = "jensen_shannon",
    weight: Tensor | None = None,
    **options: Unpack[LossArguments],
) -> tuple[Tensor, LossStats]:
    """Form the preference loss of B pairs of denoising predictions under an f-divergence (arXiv 2409.09774).

    Args:
        pred: policy predictions [2B, ...], float16/bfloat16/float32/float64. The only input that gets a gradient.
        ref: reference predictions of the same shape, or reference errors (means of squares) [2B] in float32/float64.
        target: what a perfect model would predict (noise, velocity or flow) [2B, ...]. Both sides of a pair share one
            timestep and one noise. Or the draws [3, B] of `noise.draws`: their noise is the target, and the fused
            backends make it again in the kernel. Or a `Target(draws, x_0, on)`, noise and data mixed there.
        divergence: a name of `DIVERGENCES`, a `Divergence` such as `alpha(0.3)`, or any callable u -> h(u) = f'(e^u).
        weight: per-pair factors [B] on the losses; "mean" still divides by B.
        **options: of `LossOptions`:
            beta: strength of the regularisation, outside f'; > 0.
            ratio_scale: log-ratio per unit of error difference, inside f'; > 0. Reverse KL with
                `beta * ratio_scale = beta_dpo / 2` is Diffusion-DPO.
            loss_type: "sigmoid" (the default), "hinge", "ipo" or "robust".
            label_smoothing: probability in [0, 0.5) that a label is wrong; for "sigmoid" (cDPO) and "robust".
            winner_preserving: None (the default), or mu in [0, 1) for steps that keep, to first order, at least that
                share of the decrease of the preferred sample's error that its own gradient brings: with 0 the error
                does not grow, and the closer to 1, the less of the dispreferred sample's gradient is left wherever it
                works against. Only that gradient is scaled, pair by pair, by lambda of `loss.preserving`, a constant
                to every derivative; the loss stays (Diffusion-SDPO, arXiv 2511.03317). Where the loss pushes a pair
                the other way (a margin beyond what "ipo", "robust" or smoothed labels aim at, a negative weight)
                lambda is 1. It holds for descent: an upstream gradient below zero turns it round.
            sft_weight: w >= 0, 0 by default: adds w times error_w, the preferred sample's own mean squared error, to
                the loss of its pair, as trainers of "DPO + SFT" (RPO, arXiv 2404.19733) do. The error is a mean of
                squares over elements, so w is in units of beta * ratio_scale: at the reference the preference itself
                pulls on that error with beta * ratio_scale * h'(0) / 2. The loss that is returned includes it.
            margin: m >= 0, 0 by default: the loss of a pair is that of beta * gap - m, so that a pair counts as learnt
                only where the margin beta * gap exceeds m (SimPO, arXiv 2405.14734; ODPO, arXiv 2402.10571). "hinge"
                bends at 1 + m, "ipo" aims at 1/2 + m. `LossStats.margin` and accuracy are of beta * gap as it is.
            clip_log_ratio: None (the default), or c > 0: where a log-ratio is beyond c in magnitude the link goes on
                as its tangent there, see `loss.clipping`: the slope stays h'(c) or h'(-c), neither explodes nor
                vanishes. Of a callable the tangents are formed by autograd.
            layout: "halves" = [w...; l...] (the default) or "interleaved" = [w, l, w, l, ...].
            reduction: "mean" (the default), "sum" or "none".
            backend: "triton" (GPU), "cpp" (CPU), "eager" (plain torch: any device, float64, torch.func), or None for
                the first of them that takes these tensors.

    Returns:
        The loss (float32, or float64 for float64 predictions) and its `LossStats`.

    Raises:
        TypeError: a tensor that is not floating point or not strided, reference errors in half precision, a divergence
            of no usable type, an option that is not there.
        ValueError: an odd batch, shapes or devices that differ, an unknown name, a number out of range, a backend that
            is not there or does not take these tensors.
        RuntimeError: from a backward with create_graph=True, but for the eager backend: the fused ones have no second
            derivatives.
    """
    return evaluate(_checked(divergence, options), pred, ref, target, weight)


_kept = lru_cache(maxsize=128, typed=True)(LossOptions)


def _checked(divergence: Link, options: LossArguments) -> LossOptions:
    """Return the options of a call; those of an earlier one that gave the same."""
    if isinstance(divergence, (str, Divergence)) and not torch.compiler.is_compiling():
        with suppress(TypeError):  # of what cannot be a key, and is refused with a reason below
            return _kept(divergence=divergence, **options)
    return LossOptions(divergence=divergence, **options)  # a callable may be made anew for every call: it is not kept


class FDPOLoss(nn.Module):
    """`fdpo_loss` with its options bound: `FDPOLoss(beta=..., ratio_scale=...)(pred, ref, target, weight=None)`.

    Options and errors are those of `fdpo_loss`; a bad option raises here, before the first batch.
    """

    @spelled_out(LossOptions)
    def __init__(self, divergence: Link = "jensen_shannon", **options: Unpack[LossArguments]) -> None:
        super().__init__()
        self._options = LossOptions(divergence=divergence, **options)
        if isinstance(divergence, nn.Module):  # its parameters are this module's
            self.link = divergence

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "link":  # what wraps modules puts another in its place
            self._options = replace(self._options, divergence=value)

    @property
    def options(self) -> dict[str, object]:
        """The options by name, defaults included."""
        return {field.name: getattr(self._options, field.name) for field in fields(self._options) if field.init}

    def forward(
        self, pred: Tensor, ref: Tensor, target: Tensor | Target, weight: Tensor | None = None
    ) -> tuple[Tensor, LossStats]:
        """Return the loss and the statistics of a batch, as `fdpo_loss` gives them."""
        return evaluate(self._options, pred, ref, target, weight)

    def extra_repr(self) -> str:
        """Show the options in the printed module."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


@spelled_out(PairOptions)
def log_ratio_loss(
    log_ratio_w: Tensor,
    log_ratio_l: Tensor,
    *,
    divergence: Link = "jensen_shannon",
    **options: Unpack[PairArguments],
) -> tuple[Tensor, Tensor]:
    """Form the loss from log p_theta / p_ref on, as TRL's DPO does after its models.

    log_ratio_w, log_ratio_l: [B], preferred and dispreferred. Options (beta, loss_type, label_smoothing, margin,
    clip_log_ratio, reduction) and errors are those of `fdpo_loss`; there is no `winner_preserving` and no `sft_weight`,
    which look at a model's outputs. Every operation is torch's own, in float32 for half-precision inputs. Returns the
    loss and the margins [B], detached.
    """
    checked = PairOptions(divergence=divergence, **options)
    for name, value in (("log_ratio_w", log_ratio_w), ("log_ratio_l", log_ratio_l)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(
                f"{name} must be a floating-point tensor [B], got {getattr(value, 'dtype', type(value).__name__)}"
            )
    if log_ratio_w.shape != log_ratio_l.shape or log_ratio_w.ndim != 1:
        raise ValueError(f"log-ratios must be [B] each, got {tuple(log_ratio_w.shape)} and {tuple(log_ratio_l.shape)}")
    wide = [u.float() if u.dtype in (torch.float16, torch.bfloat16) else u for u in (log_ratio_w, log_ratio_l)]
    result = checked.losses(*wide)
    return REDUCTIONS[checked.reduction](result.loss), result.margin.detach()


def evaluate(
    options: LossOptions, pred: Tensor, ref: Tensor, target: Tensor | Target, weight: Tensor | None
) -> tuple[Tensor, LossStats]:
    """Return what `fdpo_loss` returns, for options that were checked before."""
    target = Target.of(target)
    seen = traced(pred, ref, *target, weight)
    backend = backend_for(options.backend, pred, ref, target, weight, remember=not (seen or transformed()))
    saved = not seen and pred.requires_grad and torch.is_grad_enabled()
    ref, weight, target = _constant(ref, saved), _constant(weight, saved), _constants(target, saved)
    if backend == "eager":
        return _eager(options, pred, ref, target, weight)
    if not seen:
        # what a kernel finds at an address lacks the lazy sign of a complex number's conjugate
        pred = pred.resolve_neg() if pred.is_neg() else pred
        ref = ref.resolve_neg() if ref.is_neg() else ref
        if (data := target.data) is not None and data.is_neg():
            target = target._replace(data=data.resolve_neg())
    if not isinstance(options.link, Divergence):
        return _fused_log_ratio(options, backend, pred, ref, target, weight)
    weight = None if weight is None else weight.resolve_neg().float().contiguous()
    if seen:
        loss, stats = TracedLoss.apply(pred, ref, *target, weight, backend, options.call)
        return loss, named(rows_of(stats).unbind(), stats[-1])
    upstream = FusedLoss.upstream[options.reduction] if saved and backend == "cpp" else None
    results = BACKENDS[backend].loss_forward(pred, ref, target, weight, options.call, upstream)
    loss = FusedLoss.apply(pred, (target, results, backend, options.call, upstream)) if saved else results.loss
    return loss, LossStats.of(results.stats)


Constant = TypeVar("Constant", Tensor, Tensor | None)


def _constant(value: Constant, saved: bool) -> Constant:
    """Return a tensor without a graph, and one that autograd can save where it has to."""
    if value is None:
        return value
    value = value.detach() if value.requires_grad else value
    return value.clone() if saved and value.is_inference() and not torch.is_inference_mode_enabled() else value


def _constants(target: Target, saved: bool) -> Target:
    draws, data, on = target
    if on is not None:
        on = on.detach().resolve_neg().float().contiguous()
    return Target(_constant(draws, saved), _constant(data, saved), _constant(on, saved))


def _eager(
    options: LossOptions, pred: Tensor, ref: Tensor, target: Target, weight: Tensor | None
) -> tuple[Tensor, LossStats]:
    """Evaluate by the formulas of `loss.eager`, in plain torch."""
    split = LAYOUTS[options.layout]
    normals = None if target.draws is None else noise.eager_normals(target.draws, elements(pred))
    whole = as_one(target, normals, pred, options.call.interleaved)
    errors = denoising_errors(pred, ref, whole, float(options.ratio_scale))
    log_ratio_w, log_ratio_l = split(errors.log_ratio)
    scale = None
    if options.winner_preserving is not None:
        error_w = split(errors.error)[0].detach()
        product = product_of_misses(pred, whole, split, error_w.dtype)
        scale = loser_scale(options, log_ratio_w, log_ratio_l, weight, error_w, product)
        log_ratio_l = scaled(log_ratio_l, scale)
    result = options.losses(log_ratio_w, log_ratio_l)
    losses = _weighted(options, result.loss, split(errors.error)[0], weight)
    with torch.no_grad():
        per_sample = [half for values in errors for half in split(values.detach().float())]
        stats = _stats(options, per_sample, result.margin, scale)
    return REDUCTIONS[options.reduction](losses), stats


_ERROR_W, _LOSER_SCALE = Stat.ERROR_W.value, Stat.LOSER_SCALE.value
_LOG_RATIO_W, _MARGIN = Stat.LOG_RATIO_W.value, Stat.MARGIN.value  # older torch.compile slices by no enumeration


def _fused_log_ratio(
    options: LossOptions, backend: str, pred: Tensor, ref: Tensor, target: Target, weight: Tensor | None
) -> tuple[Tensor, LossStats]:
    """Evaluate a link that is no row of numbers: one operator each way up to u, plain torch behind it."""
    log_ratio, packed = FusedLogRatio.apply(pred, ref, *target, backend, options.call)
    log_ratio_w, log_ratio_l = log_ratio.unbind()
    rows, scale = rows_of(packed).unbind(), None
    if options.winner_preserving is not None:
        scale = loser_scale(options, log_ratio_w, log_ratio_l, weight, rows[_ERROR_W], rows[_LOSER_SCALE])
        log_ratio_l = scaled(log_ratio_l, scale)
    result = options.losses(log_ratio_w, log_ratio_l)
    # the operator's error has no gradient; that of u_w is -ratio_scale times as large
    error_w = rows[_ERROR_W] - (log_ratio[0] - log_ratio[0].detach()) / float(options.ratio_scale)
    losses = _weighted(options, result.loss, error_w, weight)
    with torch.no_grad():
        stats = _stats(options, rows[:_MARGIN], result.margin, scale)
    return REDUCTIONS[options.reduction](losses), stats


def _weighted(options: LossOptions, losses: Tensor, error_w: Tensor, weight: Tensor | None) -> Tensor:
    """Add what the preferred samples' errors weigh to losses of pairs, and multiply by the pairs' weights; all [B]."""
    if options.sft_weight:
        losses = losses + float(options.sft_weight) * error_w.to(losses.dtype)
    return losses if weight is None else losses * weight.to(losses.dtype)


def _stats(options: LossOptions, per_sample: Sequence[Tensor], margin: Tensor, scale: Tensor | None) -> LossStats:
    """Make the statistics from the rows of `Stat` before the margin, the margin and the loser's scale; all [B]."""
    margin = margin.detach()
    # a callable of the user's has no cap that we could count, unless it was given one
    clipped = getattr(options.link, "clipped", torch.zeros_like)
    log_ratio_w, log_ratio_l = per_sample[_LOG_RATIO_W:_MARGIN]
    past = clipped(log_ratio_w).float() + clipped(log_ratio_l).float()
    accuracy = ((margin > 0).float() + 0.5 * (margin == 0).float()).sum() / max(len(margin), 1)
    scale = torch.ones_like(past) if scale is None else scale.float()
    return named((*per_sample, margin.float(), past, scale), accuracy)
