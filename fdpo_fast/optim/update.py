"""What one step does to one parameter, as every backend is told it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

ROUNDINGS = ("stochastic", "nearest")


class Rates(NamedTuple):
    """The numbers of AdamW at step t, in the order of csrc/adamw8bit.h. With m, v the moments behind this gradient:

    p <- p - (decay * p + step_size * m / (sqrt(v) + eps))

    which is Loshchilov and Hutter's update (arXiv 1711.05101) with the bias corrections drawn out of the fraction.
    """

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    decay: float  # lr * weight_decay; taken from one it would be rounded away at small rates
    step_size: float  # lr * sqrt(1 - beta2^t) / (1 - beta1^t)
    eps: float  # times sqrt(1 - beta2^t)

    @classmethod
    def of(cls, group: dict[str, Any], step: int) -> Rates:
        """Those of a parameter group at `step`, which counts from 1."""
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        correction = math.sqrt(1 - beta2**step)
        step_size = lr * correction / (1 - beta1**step)
        return cls(beta1, 1 - beta1, beta2, 1 - beta2, lr * group["weight_decay"], step_size, group["eps"] * correction)


class Update(NamedTuple):
    """A parameter that is to be stepped; everything contiguous and on one device.

    The states are uint8 codes with the absmax of each block, or float32 without (then absmax is None). Element e of a
    half-precision parameter takes half-word e + first of the stream (seed, index, step), see `reference.random_bits`.
    """

    data: Tensor
    grad: Tensor
    m: Tensor
    v: Tensor
    absmax_m: Tensor | None
    absmax_v: Tensor | None
    copy: Tensor | None  # bfloat16, receives a float32 parameter's rounded values
    rates: Rates
    stochastic: bool
    seed: int
    index: int
    step: int
    first: int
