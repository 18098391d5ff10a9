"""The options of the loss, checked once: `fdpo_loss`, `FDPOLoss` and a configuration's section hand the same object on.

Names and numbers alone are looked at, so a configuration is checked without importing torch.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, TypeVar

from typing_extensions import Required, TypedDict

from fdpo_fast.loss.clipping import clipped
from fdpo_fast.loss.divergences import DIVERGENCES, Divergence, divergence
from fdpo_fast.loss.eager import LOSS_TYPES, LossType, PairLosses, pair_losses
from fdpo_fast.ops.call import Call
from fdpo_fast.ops.constants import BACKENDS, one_of
from fdpo_fast.ops.pairs import LAYOUTS

if TYPE_CHECKING:
    from torch import Tensor

    Link = str | Divergence | Callable[[Tensor], Tensor]

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda losses: losses.sum() / max(len(losses), 1),  # an empty batch has loss 0, not NaN
    "sum": lambda losses: losses.sum(),
    "none": lambda losses: losses,
}

# Losses of other trainers that look at each image by itself.
_POINTWISE = ("kto", "bco_pair", "sppo_hard", "nca_pair", "apo_zero", "apo_down", "aot", "exo_pair", "discopop")


class PairArguments(TypedDict, total=False):
    """The keyword arguments of `PairOptions` beside the divergence, for type checkers and editors."""

    beta: Required[float]
    loss_type: str
    label_smoothing: float
    margin: float
    clip_log_ratio: float | None
    reduction: str


class LossArguments(PairArguments, total=False):
    """The keyword arguments of `LossOptions` beside the divergence, for type checkers and editors."""

    ratio_scale: Required[float]
    winner_preserving: float | None
    sft_weight: float
    layout: str
    backend: str | None


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What the loss of a pair depends on from its two log-ratios on.

    Raises TypeError for a divergence of no usable type or what should be a number and is not, ValueError for an unknown
    name or a number out of range.
    """

    divergence: Link = "jensen_shannon"
    """A name of `DIVERGENCES`, a `Divergence` such as `alpha(0.3)`, or any callable u -> h(u) = f'(e^u)."""
    beta: float
    """Strength of the regularisation, outside f'; positive."""
    loss_type: str = "sigmoid"
    """"sigmoid", "hinge", "ipo" or "robust", see `loss.eager.LOSS_TYPES`."""
    label_smoothing: float = 0.0
    """Probability in [0, 0.5) that a label is wrong; for "sigmoid" (cDPO) and "robust"."""
    margin: float = 0.0
    """What beta * gap is to exceed: the loss is that of beta * gap - margin; not negative."""
    clip_log_ratio: float | None = None
    """The magnitude of a log-ratio beyond which the link goes on as its tangent; positive. None: nowhere."""
    reduction: str = "mean"
    """Of the losses [B]: "mean", "sum" or "none"."""

    link: Callable[[Tensor], Tensor] = field(init=False, repr=False, compare=False)
    """The function h of the log-ratio that the divergence stands for."""

    def __post_init__(self) -> None:
        if not isinstance(self.divergence, Divergence):
            _check_divergence(self.divergence)
        self._check_numbers()
        if isinstance(self.loss_type, str) and self.loss_type in _POINTWISE:
            raise ValueError(
                f"loss_type '{self.loss_type}' uses more than the difference h(u_w) - h(u_l), and only there does the "
                f"normaliser of an f-divergence cancel: use one of {', '.join(LOSS_TYPES)}"
            )
        one_of("loss_type", self.loss_type, LOSS_TYPES)
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 0.5), got {self.label_smoothing}")
        if self.label_smoothing and self.loss_type not in ("sigmoid", "robust"):
            raise ValueError(
                f"label_smoothing has no meaning for loss_type '{self.loss_type}': use 'sigmoid' or 'robust'"
            )
        one_of("reduction", self.reduction, REDUCTIONS)
        link = divergence(self.divergence) if isinstance(self.divergence, str) else self.divergence
        link = clipped(link, None if self.clip_log_ratio is None else float(self.clip_log_ratio))
        object.__setattr__(self, "link", link)  # of a frozen instance

    def _check_numbers(self) -> None:
        _check_positive("beta", self.beta)
        _check_number("label_smoothing", self.label_smoothing)
        _check_not_negative("margin", self.margin)
        if self.clip_log_ratio is not None:
            _check_positive("clip_log_ratio", self.clip_log_ratio, ", or None to clip nothing")

    @property
    def offset(self) -> float:
        """Return what is taken off the gap = h(u_w) - h(u_l) before the loss of the pair is formed."""
        return float(self.margin) / float(self.beta)

    @property
    def of_pair(self) -> LossType:
        """Return the loss of a pair as a function of gap = h(u_w) - h(u_l), a row of four numbers."""
        return LOSS_TYPES[self.loss_type](self.label_smoothing)

    def losses(self, log_ratio_w: Tensor, log_ratio_l: Tensor) -> PairLosses:
        """Form margins and losses of pairs from their log-ratios [B], by torch's own operations, in their dtype.

        Under a row of numbers the difference of two links is one of float64, as in the kernels.
        """
        dtype = log_ratio_w.dtype
        if isinstance(self.link, Divergence) and log_ratio_w.device.type != "mps":  # which has no float64
            log_ratio_w, log_ratio_l = log_ratio_w.double(), log_ratio_l.double()
        sides = log_ratio_w, log_ratio_l
        margin, loss = pair_losses(*sides, self.link, self.of_pair, float(self.beta), self.offset)
        return PairLosses(margin.to(dtype), loss.to(dtype))


@dataclass(frozen=True, kw_only=True)
class LossOptions(PairOptions):
    """All options of `fdpo_loss`, with its defaults; errors as for `PairOptions`."""

    ratio_scale: float
    """Log-ratio per unit of error difference, inside f'; positive."""
    winner_preserving: float | None = None
    """The share mu in [0, 1) of the preferred sample's gain that a step keeps at least, to first order, since the
    dispreferred one's gradient is scaled, see `loss.preserving`. None: it is not."""
    sft_weight: float = 0.0
    """The weight of the preferred sample's own mean squared error in the loss of its pair; not negative."""
    layout: str = "halves"
    """Of the rows of a batch: "halves" = [w...; l...] or "interleaved" = [w, l, w, l, ...]."""
    backend: str | None = None
    """"triton", "cpp", "eager", or None for the first of them that takes the tensors."""

    call: Call = field(init=False, repr=False, compare=False)
    """What a fused operator is told; of a link that is no row of numbers only its sums and log-ratios are of use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("layout", self.layout, LAYOUTS)
        if self.backend is not None:
            one_of("backend", self.backend, BACKENDS)
        row = self.link.row if isinstance(self.link, Divergence) else DIVERGENCES["reverse_kl"].row
        beta, ratio_scale = float(self.beta), float(self.ratio_scale)
        interleaved, may_undo = self.layout == "interleaved", None
        if self.winner_preserving is not None:
            may_undo = 1 - float(self.winner_preserving) if isinstance(self.link, Divergence) else 0.0
        clip = None if self.clip_log_ratio is None else float(self.clip_log_ratio)
        more = may_undo, float(self.sft_weight), self.offset, clip
        call = Call(row, self.of_pair, beta, ratio_scale, interleaved, self.reduction, *more)
        object.__setattr__(self, "call", call)

    def _check_numbers(self) -> None:
        super()._check_numbers()
        _check_positive("ratio_scale", self.ratio_scale)
        _check_not_negative("sft_weight", self.sft_weight)
        if self.winner_preserving is not None:
            _check_number("winner_preserving", self.winner_preserving)
            if not 0 <= float(self.winner_preserving) < 1:  # rounded: a Fraction may be below 1 by less than a float is
                raise ValueError(
                    f"winner_preserving must lie in [0, 1), or be None to scale nothing, got {self.winner_preserving}"
                )


# Python names the function that users call where a keyword is wrong or missing.
PairOptions.__init__.__qualname__, LossOptions.__init__.__qualname__ = "log_ratio_loss", "fdpo_loss"

Function = TypeVar("Function", bound=Callable[..., object])


def spelled_out(options: type[PairOptions]) -> Callable[[Function], Function]:
    """Put the options, with their defaults, in place of a function's **options, where help() and editors look."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        *own, _ = signature.parameters.values()
        _, *keywords = inspect.signature(options).parameters.values()  # without the divergence, which comes first
        keywords.sort(key=lambda keyword: keyword.default is not keyword.empty)  # what has to be given first
        vars(function)["__signature__"] = signature.replace(parameters=[*own, *keywords])
        return function

    return decorate


def _check_divergence(link: object) -> None:
    if isinstance(link, str):
        divergence(link)
    elif not callable(link):
        raise TypeError(f"divergence must be a name, a Divergence or a callable u -> h(u), got {type(link).__name__}")


def _check_number(name: str, value: object) -> None:
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def _check_positive(name: str, value: float, otherwise: str = "") -> None:
    if not 0 < _as_float(name, value) <= sys.float_info.max:
        raise ValueError(f"{name} must be positive and finite{otherwise}, got {value}")


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= _as_float(name, value) <= sys.float_info.max:
        raise ValueError(f"{name} must not be negative, and finite, got {value}")


def _as_float(name: str, value: float) -> float:
    _check_number(name, value)
    try:
        return float(value)  # numpy compares in its own precision
    except OverflowError:
        return math.inf
