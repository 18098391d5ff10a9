"""What a run warns of, by its own records; each once."""

from __future__ import annotations

from collections import deque
from itertools import pairwise


class WinnerWatch:
    """Early warning: the policy denoises the preferred images worse than the reference, and ever more so.

    Looks at the mean of error_w - ref_error_w over windows of steps; warns once when `patience` windows in a row are
    above zero and each above the one before.
    """

    def __init__(self, patience: int = 4) -> None:
        self.patience = patience
        self.recent: deque[float] = deque(maxlen=patience)
        self.warned = False

    def __call__(self, records: list[dict]) -> str | None:
        """Take note of records; return a sentence the first time that there is something to warn of."""
        self.recent.append(sum(record["delta_w"] for record in records) / len(records))
        values = list(self.recent)
        rising = all(a < b for a, b in pairwise(values))
        if self.warned or len(values) < self.patience or values[0] <= 0 or not rising:
            return None
        self.warned = True
        return (
            f"step {records[-1]['step']}: the error on preferred images has risen above the reference's for "
            f"{len(values)} windows in a row (now +{values[-1]:.2e}): the margin is bought by forgetting; "
            "lower optimizer.lr, raise loss.beta, or set loss.winner_preserving"
        )


class StandingWeights:
    """Warning: updates are rounded to nothing, so that weights stay where they are.

    nearest: whether weights are rounded to nearest; else what is lost in one step comes in another.
    """

    SHARE = 0.5
    """Of the updates, from which on it is said."""

    def __init__(self, nearest: bool) -> None:
        self.nearest = nearest

    def __call__(self, record: dict) -> str | None:
        """Take note of a record; return a sentence the first time that there is something to warn of."""
        lost = record.get("optimizer/lost", 0.0)
        if not self.nearest or lost < self.SHARE:
            return None
        self.nearest = False
        return (
            f"step {record['step']}: {lost:.0%} of the weights stand still, by a sample: their updates are less than "
            "half a step of their dtype; set optimizer.rounding to 'stochastic', or optimizer.weights to 'bf16+8'"
        )
