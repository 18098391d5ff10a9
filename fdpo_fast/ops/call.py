"""What a fused loss is called with beside its tensors."""

from typing import NamedTuple

Row = tuple[float, float, float, float]


class Call(NamedTuple):
    """The numbers and names of one call of the loss, all that a kernel ever sees of a divergence or a loss type."""

    link: Row
    """linear, scale, rate and logistic of the divergence's link, see `loss.divergences`."""
    loss_type: Row
    """kept, flipped, hinge and square of the loss of a pair, see `loss.eager.LossType`."""
    beta: float
    ratio_scale: float
    interleaved: bool
    reduction: str
    may_undo: float | None = None
    """1 - mu of `LossOptions.winner_preserving`, which scales the dispreferred samples' coefficients; None: they stay.

    Zero: they stay too, and the statistics hold mean((p_w - t_w)(p_l - t_l)) of each pair in place of the factor.
    """
    sft_weight: float = 0.0
    """Of the preferred sample's error in the loss of its pair."""
    offset: float = 0.0
    """What is taken off the gap before the loss of the pair: the target margin over beta."""
    clip_log_ratio: float | None = None
    """The magnitude of a log-ratio beyond which the link goes on as its tangent; None: nowhere."""
