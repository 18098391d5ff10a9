"""The states of a run that have a known cause and remedy: functions of its records, which give a sentence or none.

A sentence says what is seen, what it means, and what to change, by the name of the key. The trainer says it while the
run goes on, and the run's page as long as it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch

from fdpo_fast.config.run import Config

Window = dict[str, float]
"""Records in one: means of their figures; `step` is the last one's, `steps` their number, `pairs` those of all of them
and `skipped` what the last that has it says."""
State = Callable[[Sequence[Window], Config], str | None]

LEAST, LAST = 10, 4
"""The steps that a window has at least, and the windows that a state is seen by."""
ENOUGH = 100
"""Steps at the full rate, before which a run is not said to stand still."""
SMALL, STILL = 0.05, 1e-5
"""A margin that still is the reference's, as good as; and a movement of the weights that is none."""
FAR = 0.1
"""By how much more pairs in training are told apart than those held out, beyond both intervals."""
WORSENED, LESS_LIKELY = 0.1, 5.0
"""The share of the reference's error on preferred images, and the log-ratio, by which the policy may lose on them."""
COMES_DOWN = 0.9
"""Times what it was before: an error that is below this comes down."""
MOST = 0.5
"""The share of pairs, or of updates, from which on it is the rule."""
WORSE, STEEPER = 1.2, 10.0
"""Times the loss at the reference, and times the gradient norm of the windows before: what no healthy run has."""
_NORMAL = 1.959963984540054


def window(records: Sequence[dict]) -> Window:
    """Put records in one; what is not finite counts for nothing, and what no record has is missing."""
    found: Window = {}
    for key in {key for record in records for key in record}:
        values = [record[key] for record in records if isinstance(record.get(key), int | float)]
        if finite := [value for value in values if math.isfinite(value)]:
            found[key] = sum(finite) / len(finite)
    found |= {"step": records[-1]["step"], "steps": len(records)}
    found["pairs"] = sum(record.get("pairs", 0) for record in records)
    found["skipped"] = next((record["skipped"] for record in reversed(records) if "skipped" in record), 0)
    return found


def split(records: Sequence[dict]) -> list[list[dict]]:
    """Split the records of a run into those of windows: of what was written together, and of `LEAST` steps at least.

    What is left in the end goes with the last ones. Records that are written together end with one that has bins.
    """
    parts: list[list[dict]] = []
    left: list[dict] = []
    for record in records:
        left.append(record)
        if "bins" in record and len(left) >= LEAST:
            parts.append(left)
            left = []
    if left:
        parts[-1:] = [[*(parts[-1] if parts else []), *left]]
    return parts


def windows(records: Sequence[dict]) -> list[Window]:
    """Return the windows of a run's records."""
    return [window(part) for part in split(records)]


def diverging(seen: Sequence[Window], config: Config) -> str | None:
    """Say that the loss is above what a policy has that has not moved, or that gradients grow without end."""
    recent = seen[-LAST:]
    loss, norm = _mean(recent, "loss"), _mean(recent, "grad_norm")
    if config.loss.sft_weight:  # the preferred samples' own errors are no preference
        loss -= config.loss.sft_weight * _mean(recent, "error_w")
    remedy = (
        f"lower optimizer.lr ({config.optimizer.lr:g}) or lengthen optimizer.warmup_steps "
        f"({config.optimizer.warmup_steps}), and begin anew or at a checkpoint before it by --resume-from"
    )
    start = _loss_at_reference(config)
    if loss > WORSE * start:
        return (
            f"the loss is {loss:.3g}, and {start:.3g} where policy and reference are the same: the run diverges, each "
            f"step undoes others; {remedy}"
        )
    before = [each["grad_norm"] for each in seen[:-LAST] if "grad_norm" in each]
    if len(before) >= LAST and 0 < STEEPER * median(before) < norm:
        return (
            f"the gradient norm is {norm:.2g}, {norm / median(before):.0f} times that of the steps before: the run "
            f"diverges; {remedy}"
        )
    return None


def skipping(seen: Sequence[Window], config: Config) -> str | None:
    """Say how many steps were left out because their gradients were not finite."""
    if not (count := seen[-1].get("skipped", 0)) > 0:
        return None
    return (
        f"{count:g} steps skipped so far, their gradients were not finite: where they become more, lower optimizer.lr "
        f"({config.optimizer.lr:g}) or loss.beta ({config.loss.beta:g})"
    )


def standing_still(seen: Sequence[Window], config: Config) -> str | None:
    """Say that 16-bit weights do not take their updates: rounded to nothing, or drowned in what rounding adds."""
    there = [each for each in _settled(seen) if "optimizer/lost" in each and "optimizer/noise" in each]
    if not there:
        return None
    lost, noise = (median(each[key] for each in there) for key in ("optimizer/lost", "optimizer/noise"))
    if config.optimizer.rounding == "nearest" and lost >= MOST:
        return (
            f"{lost:.0%} of the weights stand still, by a sample: their updates are less than half a step of their "
            "dtype; set optimizer.rounding to 'stochastic', or optimizer.weights to 'bf16+8'"
        )
    steps = config.train.max_steps
    if noise <= steps**0.5 and steps * (1 - lost) >= 1:  # if every step went one way
        return None
    more = "" if config.optimizer.weights != "plain" else "set optimizer.weights to 'bf16+8', or "
    return (
        f"rounding moves the weights further than their updates do, in all {steps} steps together: {1 - lost:.1%} of a "
        f"step's updates come through, by a sample; {more}raise optimizer.lr ({config.optimizer.lr:g})"
    )


def not_moving(seen: Sequence[Window], config: Config) -> str | None:
    """Say that the run still is where it began, as far as the pairs tell."""
    settled = _settled(seen)
    recent = settled[-LAST:]
    if sum(each["steps"] for each in settled) < ENOUGH or len(recent) < LAST or standing_still(seen, config):
        return None
    ends = [abs(each[key]) for each in recent for key in ("margin/q05", "margin/q95") if key in each]
    if not ends or max(ends) > SMALL:
        return None
    accuracy, half = _accuracy(recent)
    movement = recent[-1].get("movement")
    stands = f"nine of ten margins are within {max(ends):.1g} of 0, so that the loss stands where it began"
    rate = f"raise optimizer.lr ({config.optimizer.lr:g})"
    scale = f"raise loss.ratio_scale ({config.loss.ratio_scale:g}), `fdpo calibrate` finds one"
    if (u := -config.loss.ratio_scale * _mean(recent, "delta_w")) > 1:
        return (
            f"{stands}: u is {u:.2g} on preferred images and as much on the others, where the link of "
            f"{config.loss.divergence} is flat; lower loss.ratio_scale ({config.loss.ratio_scale:g})"
        )
    if movement is not None and movement < STILL:
        return f"{stands}: the weights have moved by {movement:.0e} of their norm; {rate}"
    if accuracy - half > 0.5:
        remedy = scale if movement is not None else f"{rate}, or {scale}"
        return (
            f"{stands}, though {accuracy:.0%} of the pairs are told apart: u is too small for them to differ; {remedy}"
        )
    return (
        f"{stands}, and {accuracy:.0%} of the pairs are told apart, as by chance; {rate}, or {scale}, and see by "
        "`fdpo data check` which images are preferred"
    )


def winner_forgotten(seen: Sequence[Window], config: Config) -> str | None:
    """Say that the policy denoises the preferred images worse than the reference, and no better than before."""
    values = [each["delta_w"] for each in seen[-2 * LAST :] if "delta_w" in each]
    before, now = values[:LAST], values[LAST:]
    if len(now) < LAST or min(values) <= 0 or sum(now) < COMES_DOWN * sum(before):
        return None
    worse = sum(now) / LAST
    u, own = -config.loss.ratio_scale * worse, _mean(seen[-LAST:], "error_w") - worse
    if not (own > 0 and (worse > WORSENED * own or -u > LESS_LIKELY)):
        return None
    preserving, own_weight = config.loss.winner_preserving, config.loss.sft_weight
    keep = "set loss.winner_preserving" if preserving is None else f"raise loss.winner_preserving ({preserving:g})"
    keep += f" or loss.sft_weight ({own_weight:g})"
    return (
        f"the error on preferred images is {worse / own:.0%} above the reference's (u is {u:.2g}), and does not come "
        f"down: the margin is bought by forgetting; lower optimizer.lr ({config.optimizer.lr:g}), raise loss.beta "
        f"({config.loss.beta:g}), or {keep}"
    )


def memorising(seen: Sequence[Window], config: Config) -> str | None:
    """Say that pairs in training are told apart far better than those held out, or that the held-out ones get worse."""
    looks = [at for at, each in enumerate(seen) if "validation/accuracy" in each]
    if not looks:
        return None
    held, error = (
        seen[looks[-1]].get(key, math.nan) for key in ("validation/accuracy", "validation/accuracy_half_width")
    )
    trained, half = _accuracy(_until(seen, looks[-1]))
    best = max(looks, key=lambda at: seen[at]["validation/accuracy"])
    fallen = seen[best]["validation/accuracy"] - held > error and trained > _accuracy(_until(seen, best))[0]
    apart = trained - held > FAR + math.hypot(half, error)
    if not (fallen or apart):
        return None
    was = f", less than behind step {seen[best]['step'] + 1}" if fallen else ""
    return (
        f"{trained:.0%} of the pairs in training are told apart, and {held:.0%} (within {error:.0%}) of those held out"
        f"{was}: the run learns its pairs by heart, not what they prefer; end it earlier (train.keep_best, "
        f"train.patience), give it more pairs, or lower optimizer.lr ({config.optimizer.lr:g})"
    )


def saturated(seen: Sequence[Window], config: Config) -> str | None:
    """Say that most pairs have no gradient any more."""
    share = _mean(seen[-LAST:], "saturated")
    if not share > MOST:
        return None
    return (
        f"{share:.0%} of the pairs are saturated, their gradients below 5 % of that at the reference: only the others "
        f"move the weights; lower loss.ratio_scale ({config.loss.ratio_scale:g}) or loss.beta ({config.loss.beta:g}), "
        f"or end earlier (train.max_steps {config.train.max_steps})"
    )


STATES: tuple[State, ...] = (
    *(diverging, skipping, standing_still, not_moving, winner_forgotten, memorising, saturated),
)
"""All of them, in the order in which they are told."""


def _mean(seen: Sequence[Window], key: str) -> float:
    """Return the mean of a figure over windows, NaN where none has it."""
    values = [each[key] for each in seen if key in each]
    return sum(values) / len(values) if values else math.nan


def _accuracy(seen: Sequence[Window]) -> tuple[float, float]:
    """Return the implicit accuracy in training and the half width of its 95 % interval; NaN where no pair is."""
    pairs = sum(each["pairs"] for each in seen) or math.nan
    share = sum(each["pairs"] * each.get("accuracy", math.nan) for each in seen) / pairs
    return share, _NORMAL * math.sqrt(max(0.0, share * (1 - share) / pairs))


def _until(seen: Sequence[Window], at: int) -> Sequence[Window]:
    """Return the last windows up to one, and with it."""
    return seen[max(0, at + 1 - LAST) : at + 1]


def _settled(seen: Sequence[Window]) -> Sequence[Window]:
    """Return the windows since the learning rate has risen the last time."""
    rises = [at for at in range(1, len(seen)) if seen[at].get("lr", 0.0) > seen[at - 1].get("lr", 0.0) * (1 + 1e-6)]
    return seen[rises[-1] if rises else 0 :]


def _loss_at_reference(config: Config) -> float:
    """Return the loss of a pair whose log-ratios are both 0."""
    origin = torch.zeros(1, dtype=torch.float64, device="cpu")
    return config.loss.options().losses(origin, origin).loss.item()
