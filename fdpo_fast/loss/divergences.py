r"""The f-divergences, one row of four numbers each.

Direct preference optimization under D_f(p_ref, p_theta) = E_ref[f(p_theta / p_ref)] needs of f only its link

    h(u) = f'(e^u),   u = log p_theta / p_ref

(Sun et al., arXiv 2409.09774; Wang et al., f-DPO, arXiv 2309.16240). An additive constant of h cancels between the
two images of a pair, and up to such a constant every divergence below is

    h(u)  = linear * u + scale * exp(rate * u) - logistic * softplus(-u)
    h'(u) = linear + scale * rate * exp(rate * u) + logistic * sigmoid(-u)

f is convex when each term of h' is non-negative. It is admissible for DPO when 0 is outside the domain of f'
(h -> -inf as u -> -inf): only then does no image get probability zero, so that the multipliers of p_theta >= 0
vanish and the optimal policy can be inverted in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

from fdpo_fast.ops.constants import EXP_CAP

if TYPE_CHECKING:  # the names are read without torch too, by whoever checks a configuration
    from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """The link h of one f-divergence: `h(u)` by calling it, h'(u) by `slope`.

    Raises ValueError when the four numbers are not finite, not convex, or not admissible for DPO, TypeError when one is
    no number.
    """

    name: str
    linear: float = 0.0
    scale: float = 0.0
    rate: float = 0.0
    logistic: float = 0.0

    def __post_init__(self) -> None:
        if not all(isinstance(number, Real) for number in self.row):
            raise TypeError(f"divergence '{self.name}' must be a row of four numbers, got {self.row}")
        if not all(math.isfinite(number) for number in self.row):
            raise ValueError(f"divergence '{self.name}' has a number that is not finite: {self.row}")
        if self.linear < 0 or self.scale * self.rate < 0 or self.logistic < 0:
            raise ValueError(
                f"divergence '{self.name}' is not convex: linear, scale * rate and logistic must not be negative"
            )
        if not (self.linear > 0 or self.logistic > 0 or (self.scale < 0 and self.rate < 0)):
            raise ValueError(
                f"divergence '{self.name}' is not admissible for DPO: f' is finite at 0, so the optimal policy may "
                "give an image probability zero and the preference loss cannot be written in the log-ratio"
            )

    @property
    def row(self) -> tuple[float, float, float, float]:
        """Return (linear, scale, rate, logistic): all that a kernel sees of a divergence."""
        return (self.linear, self.scale, self.rate, self.logistic)

    def __call__(self, u: Tensor) -> Tensor:
        """Return h(u) - h(0), since a constant cancels in a pair; shape and dtype of `u`, float32 or float64.

        It has the first two derivatives, exact to the last digit but one in float32.
        """
        from fdpo_fast.loss.link import link  # which needs torch

        return link(u, self.row, 0)

    def slope(self, u: Tensor) -> Tensor:
        """Return h'(u) >= 0, the weight that the divergence gives to a sample's gradient; shape and dtype of `u`."""
        from fdpo_fast.loss.link import link

        return link(u, self.row, 1)

    def clipped(self, u: Tensor) -> Tensor:
        """Mark samples past the cap, where h goes on as a tangent: boolean, shape of `u`."""
        return self.rate * u > EXP_CAP


def alpha(a: float) -> Divergence:
    """Return the alpha-divergence f(x) = (x^(1-a) - (1-a) x - a) / (a (a-1)), 0 < a < 1, in f-DPO's convention.

    a -> 0 is reverse KL, a -> 1 is forward KL. TRL >= 0.29 writes the link (x^(a-1) - 1) / (a - 1):
    alpha_TRL = 1 - alpha_here. Raises ValueError outside (0, 1), TypeError for what is not a number.
    """
    if isinstance(a, bool) or not isinstance(a, Real):
        raise TypeError(f"alpha must be a number between 0 and 1, got {type(a).__name__}")
    if not 0 < a < 1:
        raise ValueError(
            f"alpha must lie strictly between 0 and 1, got {a}: its limits are 'reverse_kl' (0) and 'forward_kl' (1)"
        )
    return Divergence(f"alpha({a:g})", scale=-1 / a, rate=-a)


DIVERGENCES: dict[str, Divergence] = {
    "reverse_kl": Divergence("reverse_kl", linear=1),  # x log x
    "forward_kl": Divergence("forward_kl", scale=-1, rate=-1),  # -log x
    "jensen_shannon": Divergence("jensen_shannon", logistic=1),  # x log x - (x+1) log((x+1)/2)
    "alpha": alpha(0.5),  # the midpoint; `alpha(a)` makes the others
    "squared_hellinger": Divergence("squared_hellinger", scale=-1, rate=-0.5),  # (sqrt x - 1)^2
    "jeffreys": Divergence("jeffreys", linear=1, scale=-1, rate=-1),  # (x-1) log x
    "neyman_chi2": Divergence("neyman_chi2", scale=-1, rate=-2),  # (1-x)^2 / x
    "chi_po": Divergence("chi_po", linear=1, scale=1, rate=1),  # x log x + (x-1)^2 / 2
}

_INADMISSIBLE = {
    "pearson_chi2": "f' = 2 (x - 1) is finite at 0; 'chi_po' adds the KL term that mends this",
    "total_variation": "f' = sign(x - 1) / 2 is constant on either side of 1 and has no inverse",
}


def divergence(name: str, **params: float) -> Divergence:
    """Look a divergence up by name; `divergence("alpha", a=0.3)` (also `alpha=0.3`) takes the parameter of its row.

    Raises ValueError for an unknown or inadmissible name, TypeError for a parameter that the name does not take.
    """
    if not isinstance(name, str):
        raise TypeError(f"a divergence is named by a string, got {type(name).__name__}")
    if name in _INADMISSIBLE:
        raise ValueError(f"divergence '{name}' is not admissible for DPO: {_INADMISSIBLE[name]}")
    if name not in DIVERGENCES:
        hint = "; its parameter goes into `alpha` beside the name" if name.startswith("alpha") else ""
        raise ValueError(f"unknown divergence '{name}': use one of {', '.join(DIVERGENCES)}{hint}")
    if not params:
        return DIVERGENCES[name]
    if name != "alpha" or len(params) != 1 or not params.keys() <= {"a", "alpha"}:
        raise TypeError(f"divergence '{name}' takes no parameter {', '.join(params)}: only 'alpha' takes one, a")
    return alpha(*params.values())
