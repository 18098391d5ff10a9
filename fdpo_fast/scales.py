"""Strengths of the preference loss in the conventions of other trainers.

All of them take log sigmoid of one logit, with S = sum or mean of the squares over the N elements of a sample:

    logit = -factor * beta * ((S(p_w - t_w) - S(p_l - t_l)) - (S(r_w - t_w) - S(r_l - t_l)))

so two of them agree where factor * beta, times N if S sums, is the same number. For `fdpo_loss` under reverse KL that
number is beta * ratio_scale.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import NamedTuple


class Convention(NamedTuple):
    """How one code turns its strength, a number without unit, into a logit."""

    factor: float
    """In front of beta, inside the sigmoid."""
    sums: bool
    """Whether squares are summed over the elements of a sample, and not averaged."""
    default: float | None
    """The beta that this code ships with; None where it names no single one."""


CONVENTIONS: dict[str, Convention] = {
    # The training script of Wallace et al. (arXiv 2311.12908); both launchers pass the default.
    "diffusion_dpo": Convention(factor=0.5, sums=False, default=5000.0),
    # diffusers, examples/research_projects/diffusion_dpo: train_diffusion_dpo_sdxl.py and train_diffusion_dpo.py
    "diffusers_sdxl": Convention(factor=0.5, sums=False, default=5000.0),
    "diffusers_sd15": Convention(factor=1.0, sums=False, default=2500.0),
    # The pseudo-code in the appendix of arXiv 2311.12908; it leaves T * omega(lambda_t) to beta.
    "paper": Convention(factor=1.0, sums=True, default=None),
    # Recipes for flow-matching models, on velocity errors; betas of 100 to 2000 are in use.
    "flow": Convention(factor=0.5, sums=False, default=None),
    # Trainers of flow-matching models: LongCat-Image, train_dpo.py (its editing model: 4000); flow_grpo's
    # train_sd3_dpo.py; verl-omni; Flow-Factory (its examples: SD3.5 100, FLUX.1 2000).
    "longcat": Convention(factor=1.0, sums=False, default=2000.0),
    "flow_grpo": Convention(factor=0.5, sums=False, default=100.0),
    "verl_omni": Convention(factor=0.5, sums=False, default=2000.0),
    "flow_factory": Convention(factor=0.5, sums=False, default=2000.0),
    # SimpleTuner's flow_dpo sums over the elements; a beta that follows the margins takes this one's place by default
    "simpletuner": Convention(factor=0.5, sums=True, default=1.0),
    # `fdpo_loss`: its strength is the product beta * ratio_scale.
    "fdpo_fast": Convention(factor=1.0, sums=False, default=None),
}


def convert(beta: float, source: str, target: str, *, elements: int | None = None) -> float:
    """Return the strength that gives under `target` the logits, hence the loss, that `beta` gives under `source`.

    Args:
        beta: strength in the convention `source`, without unit; > 0.
        source, target: keys of `CONVENTIONS`.
        elements: N of one sample (channels * height * width of the latent: 16384 for SD1.5 at 512 x 512, 65536 for
            SDXL at 1024 x 1024). Needed when exactly one of the two sums: beta_sum = beta_mean / N.

    Raises:
        TypeError: a number that is none. ValueError: an unknown convention, a number out of range, missing `elements`.
    """
    beta, old, new = _positive("beta", beta), _convention("source", source), _convention("target", target)
    if elements is not None and (isinstance(elements, bool) or not isinstance(elements, Integral)):
        raise TypeError(f"elements must be a whole number, got {elements!r}: count the elements of one sample")
    if elements is not None and elements < 1:
        raise ValueError(f"elements must be at least 1, got {elements}: count the elements of one sample")
    if old.sums == new.sums:
        size = 1.0
    elif elements is None:
        raise ValueError(
            f"one of '{source}' and '{target}' sums the squares and the other averages them: pass elements, the number "
            "of elements of one sample"
        )
    else:
        size = float(elements) if old.sums else 1 / elements
    return beta * size * (old.factor / new.factor)


def ratio_scale(beta_dpo: float, convention: str, *, beta: float = 1.0, elements: int | None = None) -> float:
    """Return the `ratio_scale` for `fdpo_loss` beside `beta`, so that reverse KL equals the code of `convention`.

    Log-ratio per unit of mean squared error, convert(beta_dpo, convention, "fdpo_fast") / beta. The sigmoid, hinge and
    robust losses see the product of the two alone. The ipo loss compares the log-ratios themselves with 1 / (2 beta);
    codes that apply it to bare error differences are met with beta = beta_dpo. `elements` and what is raised: as in
    `convert`.
    """
    return convert(beta_dpo, convention, "fdpo_fast", elements=elements) / _positive("beta", beta)


def alpha_from_trl(a: float) -> float:
    """Return the `a` of `alpha(a)` for TRL's `f_alpha_divergence_coef`: 1 - a.

    TRL >= 0.29 writes the link (x^(a-1) - 1) / (a - 1), ours is (1 - x^-a) / a (f-DPO, arXiv 2309.16240). Earlier
    releases of TRL wrote f-DPO's: pass their coefficient to `alpha` as it is. Raises TypeError for what is not a
    number, ValueError outside (0, 1).
    """
    if isinstance(a, bool) or not isinstance(a, Real):
        raise TypeError(f"TRL's alpha must be a number between 0 and 1, got {type(a).__name__}")
    if not 0 < a < 1:
        raise ValueError(
            f"TRL's alpha must lie strictly between 0 and 1, got {a}: its limits are 'forward_kl' (0) and "
            "'reverse_kl' (1), use these names"
        )
    return 1 - a


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: pass a positive number")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}: pass a positive number")
    return float(value)


def _convention(name: str, key: str) -> Convention:
    if not isinstance(key, str) or key not in CONVENTIONS:
        raise ValueError(f"{name} is an unknown convention {key!r}: use one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[key]
