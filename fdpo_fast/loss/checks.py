"""The checks of a loss's options: they need names and numbers alone, so a configuration is checked without torch."""

from __future__ import annotations

import sys
from collections.abc import Collection
from numbers import Real

from fdpo_fast.loss.eager import LOSS_TYPES

# Losses of other trainers that look at each image by itself.
_POINTWISE = ("kto", "bco_pair", "sppo_hard", "nca_pair", "apo_zero", "apo_down", "aot", "exo_pair", "discopop")


def check_loss(beta: float, ratio_scale: float, loss_type: str, label_smoothing: float) -> None:
    """Raise TypeError for what is no number, ValueError for a number out of range or an unknown loss type."""
    for name, value in (("beta", beta), ("ratio_scale", ratio_scale), ("label_smoothing", label_smoothing)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    for name, value in (("beta", beta), ("ratio_scale", ratio_scale)):
        if not 0 < value <= sys.float_info.max:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if isinstance(loss_type, str) and loss_type in _POINTWISE:
        raise ValueError(
            f"loss_type '{loss_type}' uses more than the difference h(u_w) - h(u_l), and only there does the "
            f"normaliser of an f-divergence cancel: use one of {', '.join(LOSS_TYPES)}"
        )
    one_of("loss_type", loss_type, LOSS_TYPES)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    if label_smoothing and loss_type not in ("sigmoid", "robust"):
        raise ValueError(f"label_smoothing has no meaning for loss_type '{loss_type}': use 'sigmoid' or 'robust'")


def one_of(kind: str, value: str, known: Collection[str]) -> None:
    """Raise ValueError for a name that is not known."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {kind} {value!r}: use one of {', '.join(known)}")
