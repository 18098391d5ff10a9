"""From the scores of one or several judges to labels, ranks and pairs: the one definition of it.

One judge: an image is better by the judge's own score. Several, `mean`: by the weighted mean of their scores, each
divided by its standard deviation over all images that are judged. Several, `majority`: each judge has a vote of its
weight for the better of two images, half of it for each of a tie. Two images tie where the gap is 0 or below
`tie_below`: of the one judge's scores, of the mean, or, by majority, of the judge's own standardised scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.evaluation import Pairs


@dataclass(frozen=True)
class Combination:
    """How the scores of some judges become one opinion."""

    settings: Pairs
    judges: tuple[str, ...]

    def all_tie(self) -> UserError:
        """Return what is to be said where every two images that are compared tie."""
        below = self.settings.tie_below
        within, lower = (f" within pairs.tie_below {below:g}", "lower it, ") if below else ("", "")
        return UserError(
            f"all images of every caption tie{within}: there is nothing to train on; {lower}take other images, or "
            "another scorer"
        )

    def standardised(self, scores: np.ndarray) -> np.ndarray:
        """Return scores [judges, ...] in standard deviations from the mean over all; those of one judge as they are.

        Of a judge who gives all images one score all are 0.
        """
        if len(self.judges) == 1:
            return scores
        axes = tuple(range(1, scores.ndim))
        centred = scores - scores.mean(axes, keepdims=True)
        spread = scores.std(axes, keepdims=True)
        # rounding gives equal scores a spread, and underflow takes that of others
        varied = (scores.max(axes, keepdims=True) > scores.min(axes, keepdims=True)) & (spread > 0)
        return np.where(varied, centred / np.where(varied, spread, 1), 0.0)

    def labels(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the share in favour of the first image, [n], of standardised scores [judges, n] of both.

        By majority it is the share of the votes; else 1, 0, or 0.5 for a tie.
        """
        if self.settings.combine == "majority":
            return self._mean(self._votes(first - second))
        return self._votes(self._mean(first) - self._mean(second))

    def values(self, scores: np.ndarray) -> np.ndarray:
        """Return how good each image of a caption is, [images], of standardised scores [judges, images].

        By majority it is how many of the others it beats, less how many beat it (Copeland), so that images that beat
        one another in a circle are equally good.
        """
        if self.settings.combine == "mean":
            return self._mean(scores)
        shares = self._mean(self._votes(scores[:, :, None] - scores[:, None, :]))
        return (np.sign(shares - 0.5)).sum(1)

    def ranks(self, values: np.ndarray) -> np.ndarray:
        """Return the ranks of a caption's images by their `values`: 1 for the best, equal ones for a tie.

        A rank ends where the next image is worse by no tie: whatever ties join in a chain has one rank, and images of
        different ranks never tie.
        """
        order = np.argsort(-values, kind="stable")
        sorted_values = values[order]
        ends = self._differ(sorted_values[:-1] - sorted_values[1:], self.settings.combine == "mean")
        ranks = np.empty(len(values), dtype=np.int64)
        ranks[order] = np.concatenate([[1], 1 + np.cumsum(ends)])
        return ranks

    def chosen(self, values: np.ndarray) -> Iterator[list[int]]:
        """Yield the images of each record that `which` asks for, the better first; of equal ones the first is."""
        order = np.argsort(-values, kind="stable").tolist()
        if self.settings.which == "all":
            yield order
        elif self.settings.which == "adjacent":
            yield from map(list, pairwise(order))
        else:
            yield [order[0], order[-1]]

    def _differ(self, gaps: np.ndarray, of_scores: bool = True) -> np.ndarray:
        return (gaps != 0) & (np.abs(gaps) >= (self.settings.tie_below if of_scores else 0))

    def _votes(self, gaps: np.ndarray) -> np.ndarray:
        return np.where(self._differ(gaps), gaps > 0, 0.5)

    def _mean(self, values: np.ndarray) -> np.ndarray:
        """Return the weighted mean over the judges, the first axis."""
        if len(self.judges) == 1:
            return values[0]
        weights = np.array([self.settings.weights.get(name, 1.0) for name in self.judges])
        return np.tensordot(weights, values, 1) / weights.sum()
