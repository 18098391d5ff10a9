"""What a grid of runs shows: curves, the Pareto front, hypervolumes, and what can be said of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fdpo_fast.compare.grid import Point
from fdpo_fast.compare.moved import MOVED, moved
from fdpo_fast.compare.paired import Difference, differences, interval
from fdpo_fast.config.run import Config
from fdpo_fast.evaluate import statistics
from fdpo_fast.evaluate.gallery import Gallery
from fdpo_fast.evaluate.policies import BASE
from fdpo_fast.evaluate.score import Report
from fdpo_fast.evaluate.statistics import Estimate

FIGURES = ("alignment", "preference", "diversity", "win_rate")
COLUMNS = ("divergence", "alpha", "loss", "strength", "seed", *FIGURES, *MOVED)


@dataclass(frozen=True)
class Spot:
    """A divergence at a strength: means over the seeds and their standard errors, by `FIGURES` and what `MOVED` has."""

    kind: str
    strength: float
    mean: dict[str, float]
    error: dict[str, float]


class Volume(NamedTuple):
    """A divergence's hypervolume over the seeds, with an interval of 95 % (Student's t), and each seed's."""

    kind: str
    area: Estimate
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Comparison:
    """The finished runs of a grid and their evaluation."""

    config: Config
    points: list[Point]
    report: Report
    galleries: list[Gallery]

    @cached_property
    def base(self) -> dict[str, float]:
        """Return the base's means by `FIGURES`."""
        return self._figures(BASE)

    def _figures(self, model: str) -> dict[str, float]:
        compare, report = self.config.comparison, self.report
        scores = report.scores[compare.preference]
        return {
            "alignment": float(report.scores[compare.alignment][model].mean()),
            "preference": float(report.scores[compare.preference][model].mean()),
            "diversity": float(report.diversity[compare.diversity][model].mean()),
            "win_rate": float(statistics.wins(scores[model], scores[BASE]).mean()),
        }

    @cached_property
    def rows(self) -> list[dict]:
        """List a row of `COLUMNS` for each run."""
        return [
            {
                "divergence": point.kind.divergence,
                "alpha": point.kind.alpha,
                "loss": json.dumps(point.kind.loss) if point.kind.loss else None,
                "strength": point.strength,
                "seed": point.seed,
                **self._figures(point.name),
                **moved(point),
            }
            for point in self.points
        ]

    @property
    def kinds(self) -> list[str]:
        """List the names of the divergences, in the order of the configuration."""
        return list(dict.fromkeys(point.kind.name for point in self.points))

    @cached_property
    def spots(self) -> list[Spot]:
        """List every divergence at every strength, by divergence, then by strength."""
        groups: dict[tuple[str, float], list[dict]] = {}
        for point, row in zip(self.points, self.rows, strict=True):
            groups.setdefault((point.kind.name, point.strength), []).append(row)
        spots = []
        for kind, strength in sorted(groups, key=lambda key: (self.kinds.index(key[0]), key[1])):
            rows = groups[kind, strength]
            there = [key for key in (*FIGURES, *MOVED) if all(row[key] is not None for row in rows)]
            values = {key: np.array([row[key] for row in rows]) for key in there}
            n = len(rows)
            errors = {key: v.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan for key, v in values.items()}
            spots.append(Spot(kind, strength, {key: float(v.mean()) for key, v in values.items()}, errors))
        return spots

    @cached_property
    def front(self) -> list[Spot]:
        """List the spots that no other one, nor the base, beats in both alignment and diversity.

        They are compared by means over the seeds, and sorted by alignment.
        """
        positions = [(spot.mean["alignment"], spot.mean["diversity"]) for spot in self.spots]
        rivals = [self._position(self.base), *positions]
        kept = [
            s for s, at in zip(self.spots, positions, strict=True) if not any(_beats(other, at) for other in rivals)
        ]
        return sorted(kept, key=lambda spot: spot.mean["alignment"])

    @property
    def overlap(self) -> tuple[float, float]:
        """Return the alignments (from, to) that lie within every divergence's runs; from > to where there are none."""
        reached = {kind: [s.mean["alignment"] for s in self.spots if s.kind == kind] for kind in self.kinds}
        return max(map(min, reached.values())), min(map(max, reached.values()))

    @cached_property
    def volumes(self) -> list[Volume]:
        """List the area that each divergence's runs, with the base, dominate in the plane of alignment and diversity.

        The plane is scaled so that all runs and the base span the unit square; its lower left corner is the reference
        point. Of every seed by itself, where all strengths of it are finished: shorter curves cover less.
        """
        everything = np.array([(row["alignment"], row["diversity"]) for row in (self.base, *self.rows)])
        low, span = everything.min(axis=0), np.ptp(everything, axis=0)
        span[span == 0] = 1
        by_kind: dict[str, dict[int, list[tuple[float, float]]]] = {}
        for point, row in zip(self.points, self.rows, strict=True):
            seeds = by_kind.setdefault(point.kind.name, {})
            seeds.setdefault(point.seed, [self._position(self.base)]).append(self._position(row))
        volumes = []
        for kind, seeds in by_kind.items():
            whole = {seed: at for seed, at in seeds.items() if len(at) == 1 + len(self.config.comparison.strengths)}
            areas = {seed: hypervolume((np.array(at) - low) / span) for seed, at in whole.items()}
            if not areas:
                continue
            volumes.append(Volume(kind, interval(np.array(list(areas.values()))).within(0.0, 1.0), areas))
        return sorted(volumes, key=lambda volume: -volume.area.value)

    @staticmethod
    def _position(row: dict) -> tuple[float, float]:
        return row["alignment"], row["diversity"]

    def differences(self, kind: str) -> list[Difference]:
        """Compare a divergence's hypervolume with every other's with which it shares at least two seeds."""
        ours = next((volume for volume in self.volumes if volume.kind == kind), None)
        if ours is None:
            return []
        others = {volume.kind: volume.by_seed for volume in self.volumes if volume.kind != kind}
        return differences(ours.by_seed, others)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def hypervolume(positions: np.ndarray) -> float:
    """Return the area of the union of the rectangles between the origin and places [n, 2], none negative."""
    area, height = 0.0, 0.0
    for x, y in sorted(map(tuple, positions), reverse=True):
        area += x * max(0.0, y - height)
        height = max(height, y)
    return area
